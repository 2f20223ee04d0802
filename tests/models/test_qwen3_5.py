"""Qwen3.5 against Transformers on tiny random models: logits of sequences computed alone, together and in chunks, on
the reference and on native kernels; and what its files may not ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from test_worker import BACKENDS, admit, greedy
from tiny_models import make_reference, resolved_config, save_safetensors
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.kernels import registry
from octavo.kernels.ops import Ops
from octavo.kernels.registry import Spec
from octavo.kernels.step import LayerCache, PagedCache, RecurrentCache, Step
from octavo.modelfiles.facts import DeltaFacts, ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.models.decoder import Model
from octavo.models.registry import build
from octavo.weights.checkpoint import open_checkpoint
from octavo.wire.plan import Plan, Run
from octavo.worker.worker import Worker

ROWS, BLOCK, PAGES = 4, 16, 5
NATIVE = pytest.param("cpu", marks=pytest.mark.skipif("cpu" not in BACKENDS, reason="the native kernels are not built"))
TOKENS = [[(7 * i + 3 * row) % 160 for i in range(length)] for row, length in enumerate((70, 9, 23))]
CHANGES: list[dict[str, Any]] = [
    {"linear_num_value_heads": 2},
    {"linear_num_value_heads": 4, "attention_bias": True, "layer_types": ["full_attention", "linear_attention"] * 2},
]


@dataclass
class Saved:
    files: ModelFiles
    logits: list[Tensor]  # of each of TOKENS
    reference: Any


@pytest.fixture(params=CHANGES, ids=["as many heads of v", "two heads of v for one of k"], scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    reference = make_reference(
        "qwen3_5", num_hidden_layers=4, head_dim=16, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=16, initializer_range=0.15, **request.param,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith(("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight")):
                parameter.sub_(1.0)  # they are multiplied as 1 + w
        logits = [reference(torch.tensor([ids])).logits[0] for ids in TOKENS]
    return Saved(save_safetensors(reference, tmp_path_factory.mktemp("qwen3_5")), logits, reference)


@pytest.fixture(params=["reference", NATIVE], scope="module")
def ops(request: pytest.FixtureRequest) -> Ops:
    return registry.choose(Spec("cpu", "float32", threads=2), request.param)


def load(files: ModelFiles, ops: Ops) -> tuple[Model, ModelFacts]:
    facts = read_facts(files)
    with open_checkpoint(files) as checkpoint:
        return build(facts, checkpoint, ops, resolved_config()), facts


def step_of(parts: Sequence[tuple[int, int, int]]) -> Step:
    """Row i's position p lies in page PAGES * i + p // BLOCK."""
    rows = [row for row, *_ in parts]
    tokens = [(row, at) for row, first, last in parts for at in range(first, last)]
    pages = [[PAGES * row + page for page in range(-(-last // BLOCK))] for row, _, last in parts]
    int32 = {"dtype": torch.int32}
    return Step(
        token_ids=torch.tensor([TOKENS[row][at] for row, at in tokens]),
        positions=torch.tensor([at for _, at in tokens]),
        slots=torch.tensor([PAGES * BLOCK * row + at for row, at in tokens]),
        query_start=torch.tensor([0, *accumulate(last - first for _, first, last in parts)], **int32),
        context_lens=torch.tensor([last for *_, last in parts], **int32),
        page_start=torch.tensor([0, *accumulate(map(len, pages))], **int32),
        page_ids=torch.tensor([page for own in pages for page in own], **int32),
        logits_index=torch.tensor([], dtype=torch.int64),
        block_size=BLOCK,
        max_query_len=max(last - first for _, first, last in parts),
        max_context_len=max(last for *_, last in parts),
        rows=torch.tensor(rows, **int32),
    )


class Caches:
    """What the layers keep of ROWS rows; states hold anything before."""

    def __init__(self, facts: ModelFacts, ops: Ops) -> None:
        self.layers: list[LayerCache] = []
        for layer in facts.layers:
            if isinstance(mixer := layer.mixer, DeltaFacts):
                columns = torch.full((ROWS, mixer.taps - 1, mixer.channels), 7.0)
                state = torch.full((ROWS, mixer.v_heads, mixer.k_dim, mixer.v_dim), 7.0)
                self.layers.append(RecurrentCache((columns, state)))
            else:
                page, dtype = ops.kv_page(BLOCK, mixer.num_kv_heads, mixer.head_dim)
                self.layers.append(PagedCache(0, torch.zeros(2, ROWS * PAGES, *page, dtype=dtype)))

    def run(self, model: Model, parts: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Logits of tokens first:last of some of TOKENS, in one step."""
        with torch.inference_mode():
            logits = model.logits(model(step_of(parts), self.layers))
        return list(logits.split([last - first for _, first, last in parts]))


CHUNKS = [
    [(0, 0, 1), (1, 0, 4)],
    [(2, 0, 23)],
    [(1, 4, 5), (0, 1, 66)],
    [(0, 66, 67), (1, 5, 9)],
    [(0, 67, 70)],
]


def test_logits(saved: Saved, ops: Ops) -> None:
    """Alone, and cut into steps that others share."""
    model, facts = load(saved.files, ops)
    alone = [Caches(facts, ops).run(model, [(row, 0, len(ids))])[0] for row, ids in enumerate(TOKENS)]
    for found, wanted in zip(alone, saved.logits, strict=True):
        assert (found - wanted).abs().max() <= 1e-4
    caches, parts = Caches(facts, ops), [list[Tensor]() for _ in TOKENS]
    for step in CHUNKS:
        for (row, *_), found in zip(step, caches.run(model, step), strict=True):
            parts[row].append(found)
    for found, wanted, whole in zip(map(torch.cat, parts), saved.logits, alone, strict=True):
        assert (found - wanted).abs().max() <= 1e-4
        assert ops.name != "cpu" or torch.equal(found, whole)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_is_not_computed_is_refused(saved: Saved, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    config = json.loads((saved.files.path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelFileError, match=key):
        read_facts(ModelFiles("tiny", tmp_path), random_weights=True)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_greedy_tokens_are_those_of_transformers(saved: Saved, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the worker, on the CPU one recorded call a step: in chunks, beside another row, on a row that had another
    sequence before, and again from the beginning after preemption."""
    monkeypatch.setenv("OCTAVO_BACKEND", backend)
    worker = Worker(resolved_config(), saved.files)
    worker.start()
    first, second = TOKENS[0][:30], TOKENS[2]
    blocks = [list(range(8)), list(range(8, 16))]

    def decode(*rows: int, count: int) -> list[tuple[int, ...]]:
        return [tuple(worker.run(Plan(9, run=[Run(row, 1, True) for row in rows])).token_ids) for _ in range(count)]

    worker.run(Plan(0, admit=[admit(0, second[::-1], blocks[0])], run=[Run(0, len(second), True)]))
    worker.run(Plan(1, release=[0], admit=[admit(0, first, blocks[0])], run=[Run(0, 17, False)]))
    both = Plan(2, admit=[admit(1, second, blocks[1])], run=[Run(0, 13, True), Run(1, len(second), True)])
    found = [tuple(worker.run(both).token_ids), *decode(0, 1, count=5)]
    wanted = [greedy(saved.reference, ids, 10) for ids in (first, second)]
    assert [*zip(*found, strict=True)] == [tuple(tokens[:6]) for tokens in wanted]
    so_far = [*first, *wanted[0][:6]]
    again = Plan(3, release=[0, 1], admit=[admit(2, so_far, blocks[0])], run=[Run(2, len(so_far), True)])
    rest = [tuple(worker.run(again).token_ids), *decode(2, count=3)]
    assert [tokens[0] for tokens in rest] == wanted[0][6:]
    worker.shutdown()
