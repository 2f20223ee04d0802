"""The choice of attention on a GPU, with reasons; FlashInfer's adapter over a module that records what it is asked and
computes it by the definition; PyTorch's on the device of its tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from test_reference import BLOCKS, make_step, naive_attention, randn
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels import attention, registry
from octavo.kernels.choice import Spec
from octavo.kernels.flashinfer import FlashInferAttention
from octavo.kernels.reference.attention import PlannedAttention
from octavo.kernels.step import Step

BF16 = torch.bfloat16
GPU = Spec("cuda:0", "bfloat16", head_dim=128)


class Wrapper:
    """FlashInfer's two wrappers. `plan` takes the names that FlashInfer 0.2 to 0.7 share."""

    made: ClassVar[list[Wrapper]] = []

    def __init__(self, workspace: Tensor, kv_layout: str, use_tensor_cores: bool | None = None) -> None:
        assert workspace.dtype == torch.uint8 and not workspace.any() and kv_layout == "NHD"
        self.workspace, self.tensor_cores = workspace, use_tensor_cores
        self.plans: list[dict[str, Any]] = []
        self.runs = 0
        Wrapper.made.append(self)

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor) -> Tensor:
        plan = self.plans[-1]
        self.runs += 1
        assert (q.dtype, paged_kv_cache[0].dtype) == (plan["q_data_type"], plan["kv_data_type"])
        starts = plan.get("qo_indptr", torch.arange(len(plan["indptr"]), dtype=torch.int32))
        pages = plan["indptr"][1:] - plan["indptr"][:-1]
        context = (pages - 1) * plan["page_size"] + plan["last_page_len"]
        new = starts[1:] - starts[:-1]
        parts = [torch.arange(int(c) - int(n), int(c)) for c, n in zip(context, new, strict=True)]
        step = Step(
            torch.zeros(q.shape[0]), torch.cat(parts), torch.zeros(0), starts, context, plan["indptr"],
            plan["indices"], torch.zeros(0), plan["page_size"], int(new.max()), int(context.max()),
            torch.arange(len(new), dtype=torch.int32),
        )  # fmt: skip
        window = None if plan["window_left"] < 0 else plan["window_left"] + 1
        kv = torch.stack(paged_kv_cache).float()
        found = naive_attention(q.float(), kv, step, plan["sm_scale"], window, plan["logits_soft_cap"] or None)
        return out.copy_(found.view_as(out))


class Decode(Wrapper):
    def plan(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, num_qo_heads: int, num_kv_heads: int,
        head_dim: int, page_size: int, *, window_left: int = -1, logits_soft_cap: float | None = None,
        q_data_type: Any = "float16", kv_data_type: Any = None, sm_scale: float | None = None,
    ) -> None:  # fmt: skip
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        self.plans.append({name: value for name, value in locals().items() if name != "self"})


class Prefill(Wrapper):
    def plan(
        self, qo_indptr: Tensor, paged_kv_indptr: Tensor, paged_kv_indices: Tensor, paged_kv_last_page_len: Tensor,
        num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int, *, causal: bool = False,
        window_left: int = -1, logits_soft_cap: float | None = None, q_data_type: Any = "float16",
        kv_data_type: Any = None, sm_scale: float | None = None,
    ) -> None:  # fmt: skip
        assert causal and qo_indptr.dtype == torch.int32
        found = {name.removeprefix("paged_kv_"): value for name, value in locals().items() if name != "self"}
        self.plans.append(found)


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Wrapper]]:
    module: Any = ModuleType("flashinfer")
    module.__spec__ = ModuleSpec("flashinfer", None)
    module.BatchDecodeWithPagedKVCacheWrapper, module.BatchPrefillWithPagedKVCacheWrapper = Decode, Prefill
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(Wrapper, "made", [])
    yield Wrapper


@pytest.mark.parametrize("rows", [[(40, 1), (3, 1), (16, 1)], [(40, 7), (3, 3), (16, 1)], [(33, 33)]])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (1, None), (7, 2.0)])
@pytest.mark.parametrize("kv", [BF16, torch.float8_e4m3fn])
def test_flashinfer_gets_the_step_as_it_is(
    flashinfer: type[Wrapper], rows: list[tuple[int, int]], window: int | None, soft_cap: float | None, kv: torch.dtype
) -> None:
    step = make_step(rows, 16)
    q = randn(step.num_tokens, 6, 64, seed=1, dtype=BF16)
    pages = randn(2, BLOCKS, 16, 2, 64, seed=2).to(kv)
    found = FlashInferAttention("cpu", 1024)(q, pages, step, 0.125, window, soft_cap)
    wanted = naive_attention(q.float(), pages.float(), step, 0.125, window, soft_cap)
    assert found.shape == wanted.shape and found.dtype == BF16
    assert (found - wanted).abs().max() <= 2**-7 * pages.float().abs().max()
    (wrapper,) = flashinfer.made
    (plan,) = wrapper.plans
    assert isinstance(wrapper, Decode if rows[0][1] == 1 else Prefill)
    assert (plan["num_qo_heads"], plan["num_kv_heads"], plan["page_size"]) == (6, 2, 16)
    assert plan["indices"] is step.page_ids and torch.equal(plan["indptr"], step.page_start)


def test_layers_share_a_plan_and_steps_share_wrappers(flashinfer: type[Wrapper]) -> None:
    attend = FlashInferAttention("cpu", 1024)
    kv, q = randn(2, BLOCKS, 8, 1, 64, dtype=BF16), randn(2, 2, 64, dtype=BF16)
    for context in (9, 20, 31):
        step = make_step([(context, 1), (5, 1)], 8)
        for window in (None, 4, None, 4, None):
            attend(q, kv, step, 0.125, window)
    whole, windowed = flashinfer.made
    assert (len(whole.plans), whole.runs, len(windowed.plans), windowed.runs) == (3, 9, 3, 6)
    assert whole.workspace is windowed.workspace and whole.tensor_cores is False
    attend(q[:0], kv, make_step([], 8), 0.125)
    attend(randn(2, 8, 64, dtype=BF16), kv, step, 0.125)
    assert flashinfer.made[2].tensor_cores is True, "eight heads of one KV head fill a tile"


def test_the_choice_and_its_reasons(flashinfer: type[Wrapper], monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(spec: Spec) -> tuple[str, str]:
        found = attention.report(spec)
        return next(choice.name for choice in found if choice.chosen), found[0].reason

    installed = {"flashinfer", "triton"}
    monkeypatch.setattr(attention, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(attention.shutil, "which", lambda name: f"/bin/{name}")
    assert chosen(GPU) == ("flashinfer", "FlashInfer over our page table")
    assert chosen(replace(GPU, kv_cache_dtype="fp8"))[0] == "flashinfer"
    assert chosen(replace(GPU, attention="torch")) == ("torch", "--attention-backend torch")
    refused = {
        "has no float32": replace(GPU, dtype="float32"),
        "has no KV cache of float16 beside bfloat16": replace(GPU, kv_cache_dtype="float16"),
        "heads of 64, 128, 256, not of 96": replace(GPU, head_dim=96),
        "runs on an NVIDIA GPU, not on cpu": Spec("cpu", "bfloat16"),
    }
    for reason, spec in refused.items():
        name, why = chosen(spec)
        assert name == "triton" and reason in why
        with pytest.raises(ConfigError, match=f"--attention-backend flashinfer: .*{reason}"):
            attention.choose(replace(spec, attention="flashinfer"))
    monkeypatch.setattr(attention.shutil, "which", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert "nvcc or ninja is missing" in chosen(GPU)[1]
    installed.add("flashinfer_jit_cache")
    assert chosen(GPU)[0] == "flashinfer"
    installed.clear()
    assert "not installed" in chosen(GPU)[1] and chosen(GPU)[0] == "torch"
    assert [choice.name for choice in registry.attention_report(GPU)] == ["flashinfer", "triton", "torch"]
    assert registry.attention_report(Spec("cpu", "bfloat16")) == []
    with pytest.raises(ConfigError, match="fast: no such attention; there are auto, flashinfer, triton, torch"):
        attention.choose(replace(GPU, attention="fast"))


@pytest.mark.parametrize(
    ("capability", "kv", "reason"),
    [
        ((7, 5), None, "needs compute capability 8.0 for its products, and the GPU has compute capability 7.5"),
        ((8, 6), "fp8", "has a KV cache of fp8 from compute capability 8.9 on, and the GPU has compute capability 8.6"),
        ((8, 0), None, None),
        ((8, 9), "fp8", None),
    ],
)
def test_what_a_gpu_lacks_is_a_reason(
    capability: tuple[int, int], kv: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    spec = replace(GPU, kv_cache_dtype=kv)
    operations = next(choice for choice in registry.report(spec) if choice.name == "triton")
    assert operations.chosen == (reason is None) and reason in (None, operations.reason)
    (attends,) = (choice for choice in registry.attention_report(spec) if choice.name == "triton")
    assert attends.chosen == (reason is None) and reason in (None, attends.reason)
    if reason is not None:
        with pytest.raises(ConfigError, match=reason):
            registry.choose(spec)


def test_the_choice_is_loaded_and_told() -> None:
    """Interpreted, the Triton backend takes any attention."""
    pytest.importorskip("triton")
    from octavo.kernels.triton.launch import INTERPRETED

    if not INTERPRETED:
        pytest.skip("on a GPU the choice is made for it")
    step, q, kv = make_step([(20, 3), (9, 1)], 8), randn(4, 4, 16), randn(2, BLOCKS, 8, 2, 16, seed=1)
    found = {}
    for name in ("triton", "torch"):
        ops = registry.choose(Spec("cpu", "float32", attention=name), "triton")
        assert any(note.startswith(f"attention by {name}: ") for note in ops.notes)
        assert any(note.startswith("not the flashinfer attention: ") for note in ops.notes)
        found[name] = ops.attention(q, kv, step, 0.25, 7)
    assert torch.allclose(found["triton"], found["torch"], atol=1e-5)


@pytest.mark.parametrize("rows", [[(600, 1), (40, 1), (3, 1)], [(300, 290), (5, 1), (16, 2)]])
@pytest.mark.parametrize("kv", [BF16, torch.float8_e4m3fn])
def test_pytorch_attention_makes_all_it_needs_on_the_device(rows: list[tuple[int, int]], kv: torch.dtype) -> None:
    """With the default device set to one that cannot compute, anything made elsewhere than beside q is an error."""
    step, attend = make_step(rows, 32), PlannedAttention()
    q, pages = randn(step.num_tokens, 4, 16, seed=1, dtype=BF16), randn(2, BLOCKS, 32, 2, 16, seed=2).to(kv)
    for window, soft_cap in ((None, None), (50, 2.0)):
        with torch.device("meta"):
            found = attend(q, pages, step, 0.25, window, soft_cap)
        wanted = naive_attention(q.float(), pages.float(), step, 0.25, window, soft_cap)
        assert (found - wanted).abs().max() <= 0.05
