"""What a graph captures waits for nothing on the host: no operation of a decode step reads a tensor back, makes one of
numbers that the host has, or one whose size hangs on contents. On a CPU by Triton's interpreter: every call of PyTorch
is looked at, the kernels' own reads are not. On a GPU the capture itself would fail (tests/gpu)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BLOCK_SIZE, VOCAB, make_reference, resolved_config, save_safetensors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups, Layout
from octavo.kernels.ops import Ops
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import PenaltyRows
from octavo.modelfiles.facts import read_facts
from octavo.models.registry import build
from octavo.weights.checkpoint import open_checkpoint
from octavo.worker.graphs import Computation, DecodeGraphs
from octavo.worker.kv import allocate

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter computes lanes that a GPU masks out
]
ENQUEUED = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided",
    "view", "_unsafe_view", "slice", "select", "unbind", "unsqueeze", "squeeze", "transpose", "t", "permute", "expand",
    "as_strided", "detach", "alias", "split", "split_with_sizes",
    "mm", "addmm", "linear", "copy_", "clone", "fill_", "sub", "sub_", "logsumexp", "gather", "topk", "index_select",
}  # fmt: skip
"""Operations of PyTorch that enter a GPU's queue and do no more, whatever their arguments are."""


class OnlyEnqueued(TorchDispatchMode):
    """Refuses every other operation, and these where they would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if name in ("index", "index_put_"):
            fine = all(index is None or index.dtype in (torch.int32, torch.int64) for index in args[1])
        elif name == "_to_copy":
            fine = kwargs.get("device") in (None, tensors[0].device)
        else:
            fine = name in ENQUEUED
        assert fine, f"{func} in a decode step"
        return func(*args, **kwargs)


@contextmanager
def only_enqueued() -> Iterator[None]:
    from triton.runtime import interpreter

    launch = interpreter.GridExecutor.__call__

    def unwatched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), OnlyEnqueued():
        patch.setattr(interpreter.GridExecutor, "__call__", unwatched)
        yield


def triton_ops() -> Ops:
    from octavo.kernels.triton.backend import TritonOps

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: it captures such steps")
    return TritonOps(torch.float32, torch.float32, "cpu")


def make_rows(rows: int) -> DeviceRows:
    pages = resolved_config().max_model_len // BLOCK_SIZE
    return DeviceRows(
        torch.arange(rows + 1) % VOCAB,
        torch.arange(rows + 1, dtype=torch.int32) * 3 % 40,
        torch.arange((rows + 1) * pages, dtype=torch.int32).view(1, rows + 1, pages),
        torch.tensor([5, 1, 0]).repeat(rows + 1, 1),
    )


class NoDevice:
    """For what is captured, not for who captures it."""

    where = torch.device("cpu")

    def graph_pool(self) -> object:
        return self


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_decode_step_of_a_model_waits_for_nothing(kind: str, size: int, tmp_path: Path) -> None:
    files, resolved, ops = save_safetensors(make_reference(kind), tmp_path), resolved_config(), triton_ops()
    facts = read_facts(files)
    with open_checkpoint(files) as checkpoint:
        model = build(facts, checkpoint, ops, resolved)
    state, kv = make_rows(4), allocate(facts, resolved, ops, [5 * resolved.max_model_len // BLOCK_SIZE])
    floats = torch.tensor([0.8, 0.9, 0.05]).repeat(5, 1)
    parts = Computation(model, ops, kv, state, floats, BLOCK_SIZE, resolved.max_model_len)
    graphs = DecodeGraphs(parts, NoDevice(), [size], facts.hidden_size)  # type: ignore[arg-type]
    graphs._rows.copy_(torch.arange(size))
    with only_enqueued():
        graphs._forward(size)
        graphs._sample(size)
    assert state.num_computed[:size].tolist() == [3 * row % 40 + 1 for row in range(size)]
    assert ((graphs._token_ids >= 0) & (graphs._token_ids < VOCAB)).all()


def weights() -> list[Layout]:
    q = torch.randint(-9, 9, (64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    scales = torch.ones(64, 2)
    return [
        Dense(q.float()), Int8Groups(q, scales), Int8Groups(q, scales[:, :1]),
        Float8Groups(q.to(torch.float8_e4m3fn), scales), Int4Groups(q[:, :32].view(torch.uint8), scales, -scales),
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3])
def test_products_and_mixtures_wait_for_nothing(rows: int) -> None:
    ops, x, ids = triton_ops(), torch.randn(rows, 64), torch.arange(rows)
    prepared = [ops.prepare([weight]) for weight in weights()] + [ops.prepare(weights())]
    tables = [ops.prepare_table(weight) for weight in weights()]
    experts = [
        (ops.prepare_experts([[weight, weight]] * 4), ops.prepare_experts([[weight]] * 4)) for weight in weights()
    ]
    bias = torch.randn(64 * len(weights()))
    with only_enqueued():
        for matrix in prepared:
            ops.linear(x, matrix, bias[: matrix.shape[0]])
            ops.logits(x, matrix)
        for table in tables:
            ops.embedding(ids, table)
        chosen = ops.route(ops.gather_rows(x, ids)[:, :4], 2, renormalize=True)
        for gate_up, down in experts:
            ops.experts(x, *chosen, gate_up, down)


def test_what_changes_logits_waits_for_nothing() -> None:
    ops, logits, places = triton_ops(), torch.randn(3, 100), torch.tensor([1, -1, 0])
    counts, seen = torch.ones(2, 100, dtype=torch.int32), torch.ones(2, 100, dtype=torch.bool)
    allowed, setting = torch.full((2, 4), -1, dtype=torch.int32), torch.full((3,), 1.1)
    with only_enqueued():
        ops.mask(logits, places, allowed)
        ops.penalize(logits, PenaltyRows(places, counts, seen, setting, setting, setting))
        ops.logprobs(logits, torch.empty_like(places).fill_(3), 4)


def test_what_waits_is_refused() -> None:
    x = torch.ones(3)
    for wait in (
        lambda: x.sum().item(), lambda: x.tolist(), lambda: x[x > 0], lambda: x.nonzero(), lambda: torch.tensor([1]),
        lambda: x.masked_select(x > 0), lambda: bool(x[0]), lambda: x.to("meta"), lambda: torch.arange(3),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="in a decode step"), only_enqueued():
            wait()
