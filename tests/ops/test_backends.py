"""Every operation on every backend and instruction set that this machine runs, against the reference or plain loops
over its definition; and what only native kernels promise: results that hang on nothing but their own row."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layouts import fp8, int4, int8
from test_reference import BLOCKS, ROWS, make_step, naive_attention, randn
from torch import Tensor
from triton_ops import HAS_TRITON, triton_ops

from octavo.errors import ConfigError
from octavo.kernels import registry
from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups, Layout
from octavo.kernels.ops import HeadNorms, Ops, Result
from octavo.kernels.registry import Spec
from octavo.kernels.step import Step

F32 = torch.float32
FEW = settings(max_examples=25, deadline=None)
NATIVE = next(choice for choice in registry.report(Spec("cpu", "float32"), "cpu") if choice.name == "cpu").chosen


def _isas() -> list[str]:
    if not NATIVE:
        return []
    from octavo.kernels.cpu.backend import known_isas

    return known_isas()


ISAS = _isas()
REFERENCE = registry.choose(Spec("cpu", "float32"), "reference")
needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")


def native(isa: str, dtype: str = "float32", kv: str | None = None, threads: int = 2) -> Ops:
    return registry.choose(Spec("cpu", dtype, kv, threads, isa), "cpu")


@pytest.fixture(params=["reference", *ISAS, *(["triton"] if HAS_TRITON else [])], scope="module")
def ops(request: pytest.FixtureRequest) -> Ops:
    if request.param == "triton":
        return triton_ops()
    return REFERENCE if request.param == "reference" else native(request.param)


@pytest.fixture(params=ISAS, scope="module")
def isa(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest; on a GPU, which multiplies f32 as three products of tf32, within four times as
    much."""
    assert found.shape == wanted.shape
    slack = 4 if torch.cuda.is_available() else 1
    assert not len(wanted) or (found - wanted).abs().max() <= slack * tolerance * wanted.abs().max()


# --- products

WEIGHTS: dict[str, tuple[Callable[[int, int], Layout], float]] = {
    "f32": (lambda n, k: Dense(randn(n, k, seed=1)), 1e-5),
    "bf16": (lambda n, k: Dense(randn(n, k, seed=1).bfloat16()), 2**-7),
    "int8": (lambda n, k: Int8Groups(ints(n, k, -127, 128), randn(n, k // 32, seed=2).half()), 2**-6),
    "int8 by 16": (lambda n, k: Int8Groups(ints(n, k, -32, 32), randn(n, k // 16, seed=2)), 2**-6),
    "int4": (
        lambda n, k: Int4Groups(bytes_(n, k // 2), randn(n, k // 32, seed=2).half(), randn(n, k // 32, seed=3).half()),
        2**-6,
    ),
    "int4 by 16": (
        lambda n, k: Int4Groups(bytes_(n, k // 2), randn(n, k // 16, seed=2), randn(n, k // 16, seed=3)),
        2**-6,
    ),
    "int8 by 64, bf16 scales": (
        lambda n, k: Int8Groups(ints(n, k * 2, -127, 128), randn(n, k // 32, seed=2).bfloat16()), 2**-6,
    ),
    "fp8": (lambda n, k: Float8Groups(floats8(n, k), randn(n, k // 32, seed=2)), 1e-5),
    "fp8 by rows": (lambda n, k: Float8Groups(floats8(n, k), randn(n, 1, seed=2).half()), 1e-5),
}  # fmt: skip


DTYPE_OF = {"f32": "float32", "fp8": "float32", "fp8 by rows": "float32"}
"""In which these stay what they are: native kernels make fp8 dense. The others do in bfloat16."""


def ints(n: int, k: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high, (n, k), generator=torch.Generator().manual_seed(4), dtype=torch.int8)


def floats8(n: int, k: int) -> Tensor:
    return (randn(n, k, seed=4) * 40).to(torch.float8_e4m3fn)


def bytes_(n: int, k: int) -> Tensor:
    return torch.randint(0, 256, (n, k), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


@needs_native
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("tokens", "n", "k"), [(0, 8, 32), (1, 1, 32), (1, 100, 576), (5, 33, 96), (70, 48, 160)])
def test_linear(isa: str, kind: str, tokens: int, n: int, k: int) -> None:
    make, tolerance = WEIGHTS[kind]
    weight, ops = make(n, k), native(isa, DTYPE_OF.get(kind, "bfloat16"))
    packed = ops.prepare([weight])
    assert packed.shape == weight.shape
    assert torch.equal(packed.dequantize(F32), weight.dequantize(F32))
    x, bias = randn(tokens, weight.shape[1], seed=6), randn(n, seed=7)
    product = x @ weight.dequantize(F32).T
    scale = float((x.norm(dim=1).amax(0) if tokens else torch.ones(1)) * weight.dequantize(F32).norm(dim=1).amax())
    for found, wanted in ((ops.linear(x, packed), product), (ops.linear(x, packed, bias), product + bias)):
        assert found.shape == (tokens, n) and found.dtype == F32
        assert not tokens or (found - wanted).abs().max() <= tolerance * scale
    assert torch.equal(ops.logits(x, packed), ops.linear(x, packed))


@needs_native
def test_parts_of_several_kinds_are_one_product(isa: str) -> None:
    ops = native(isa, "bfloat16")
    parts: list[Layout] = [int4(1), int8(2), int8(3), int8(4, 16, F32), Dense(randn(5, 256).bfloat16())]
    packed, x = ops.prepare(parts), randn(9, 256, seed=8)
    assert packed.shape == (4 * 12 + 5, 256)
    assert torch.equal(packed.dequantize(F32), torch.cat([part.dequantize(F32) for part in parts]))
    bias = randn(4 * 12 + 5, seed=9)
    wanted = torch.cat([ops.linear(x, ops.prepare([part])) for part in parts], dim=1) + bias
    near(ops.linear(x, packed, bias), wanted, 1e-6)


@needs_native
@pytest.mark.parametrize("kind", WEIGHTS)
def test_float32_rounds_nothing(isa: str, kind: str) -> None:
    weight, ops = WEIGHTS[kind][0](33, 96), native(isa)
    packed, x = ops.prepare([weight]), randn(5, weight.shape[1])
    near(ops.linear(x, packed), (x.double() @ weight.dequantize(F32).double().T).float(), 1e-5)


@needs_native
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_row_of_a_product_is_the_same_alone(isa: str, kind: str) -> None:
    ops = native(isa, DTYPE_OF.get(kind, "bfloat16"))
    weight = ops.prepare([WEIGHTS[kind][0](83, 192)])
    x = randn(67, weight.shape[1], seed=1)
    whole = ops.linear(x, weight)
    for count in (1, 2, 3, 4, 5, 7, 8, 13, 16, 33):
        for first in range(0, 67 - count, 11):
            assert torch.equal(ops.linear(x[first : first + count], weight), whole[first : first + count])
    one_thread = native(isa, DTYPE_OF.get(kind, "bfloat16"), threads=1)
    assert torch.equal(one_thread.linear(x, weight), whole)


def test_embedding(ops: Ops) -> None:
    ids = torch.tensor([5, 0, 11, 0, 3])
    for weight in (Dense(randn(12, 70)), int8(0), fp8(0), fp8(1, 256), int4(0), int4(1, 16, F32)):
        table = ops.prepare_table(weight)
        assert torch.equal(ops.embedding(ids, table), weight.dequantize(F32)[ids])
        assert ops.embedding(ids[:0], table).shape == (0, weight.shape[1])


# --- rows


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 33), (40, 576), (3, 2048)])
def test_norms(ops: Ops, shape: tuple[int, int]) -> None:
    x, residual, weight = randn(*shape), randn(*shape, seed=1), randn(shape[1], seed=2)

    def exact(values: Tensor) -> Tensor:
        wide = values.double()
        return (wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()).float()

    near(ops.rms_norm(x, weight, 1e-3), exact(x), 1e-5)
    total = x + residual
    normed, kept = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-3)
    assert torch.equal(kept, total)
    near(normed, exact(total), 1e-5)
    normed, kept = ops.add_rms_norm(x.clone(), None, weight, 1e-3)
    assert torch.equal(kept, x)
    assert torch.equal(normed, ops.rms_norm(x, weight, 1e-3))


@pytest.mark.parametrize(("tokens", "width"), [(0, 4), (1, 1), (7, 33), (5, 1536)])
def test_silu_mul_and_gather_rows(ops: Ops, tokens: int, width: int) -> None:
    x = 4 * randn(tokens, 2 * width)
    gate, up = x.double().chunk(2, dim=1)
    near(ops.silu_mul(x), (gate * gate.sigmoid() * up).float(), 1e-5)
    index = torch.arange(tokens).flip(0)
    assert torch.equal(ops.gather_rows(x, index), x.flip(0))
    assert torch.equal(ops.gather_rows(x, index[:1]), x[tokens - 1 :])


# --- rope, pages, attention


def no_turn(positions: int, dim: int) -> Tensor:
    return torch.cat((torch.ones(positions, dim // 2), torch.zeros(positions, dim // 2)), dim=-1)


def filled(ops: Ops, step: Step, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    """Pages that hold k and v of all positions of `step`."""
    shape, dtype = ops.kv_page(block_size, k.shape[1], k.shape[2])
    kv = torch.zeros(2, BLOCKS, *shape, dtype=dtype)
    ops.rope_cache(torch.zeros_like(k), k, v, no_turn(1024, k.shape[2]), kv, step)
    return kv


def naive_pages(step: Step, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    kv = torch.zeros(2, BLOCKS * block_size, *k.shape[1:])
    kv[0, step.slots], kv[1, step.slots] = k, v
    return kv.view(2, BLOCKS, block_size, *k.shape[1:])


@pytest.mark.parametrize("rotary_dim", [4, 6, 12])
def test_rope_turns_queries_and_keys(ops: Ops, rotary_dim: int) -> None:
    """The same scores whether q and k are turned by rope_cache or before, as complex numbers."""
    head_dim, rows = 12, [(20, 3), (9, 9), (17, 1)]
    whole, step = make_step([(c, c) for c, _ in rows], 8), make_step(rows, 8)
    angles = torch.outer(torch.arange(32.0), 1.0 / 10.0 ** torch.arange(rotary_dim // 2))
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        half = rotary_dim // 2
        z = torch.complex(x[..., :half], x[..., half:rotary_dim])
        z = z * torch.polar(torch.ones(()), angles[positions])[:, None]
        return torch.cat((z.real, z.imag, x[..., rotary_dim:]), dim=-1)

    fused = randn(len(whole.positions), 5 + 2 * 2, head_dim, seed=1)
    shape, dtype = ops.kv_page(8, 2, head_dim)
    kv = torch.zeros(2, BLOCKS, *shape, dtype=dtype)
    found = ops.rope_cache(fused[:, :5], fused[:, 5:7], fused[:, 7:], table, kv, whole)
    assert found.is_contiguous()
    near(found, turned(fused[:, :5], whole.positions), 1e-5)
    q = randn(len(step.positions), 4, head_dim, seed=2)
    pages = naive_pages(whole, turned(fused[:, 5:7], whole.positions), fused[:, 7:], 8)
    near(ops.attention(q, kv, step, 0.3), naive_attention(q, pages, step, 0.3, None, None).float(), 1e-5)


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(12, 4), (12, 12), (128, 128), (80, 32)])
def test_heads_are_normalized_before_they_are_turned(ops: Ops, head_dim: int, rotary_dim: int) -> None:
    rows = [(20, 3), (9, 9), (17, 1)]
    whole, step = make_step([(c, c) for c, _ in rows], 8), make_step(rows, 8)
    angles = torch.outer(torch.arange(32.0), 1.0 / 10.0 ** torch.arange(rotary_dim // 2))
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    norms = HeadNorms(randn(head_dim, seed=4), randn(head_dim, seed=5), 0.1)

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        exact = x.double()
        return (exact / (exact.square().mean(-1, keepdim=True) + norms.eps).sqrt() * weight).float()

    fused = randn(len(whole.positions), 5 + 2 * 2, head_dim, seed=1)
    q, k, v = fused[:, :5], fused[:, 5:7], fused[:, 7:]
    shape, dtype = ops.kv_page(8, 2, head_dim)
    found, wanted = (torch.zeros(2, BLOCKS, *shape, dtype=dtype) for _ in range(2))
    turned = ops.rope_cache(q, k, v, table, found, whole, norms)
    assert turned.is_contiguous()
    near(turned, ops.rope_cache(normed(q, norms.q), normed(k, norms.k), v, table, wanted, whole), 1e-5)
    again = randn(len(step.positions), 4, head_dim, seed=2)
    near(ops.attention(again, found, step, 0.3), ops.attention(again, wanted, step, 0.3), 1e-5)


CASES = given(
    rows=ROWS,
    block_size=st.sampled_from([8, 16, 32]),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 5]),
    head_dim=st.sampled_from([16, 64, 6]),
    window=st.sampled_from([None, None, 1, 7, 100]),
    soft_cap=st.sampled_from([None, None, 2.0]),
)


@pytest.mark.parametrize("ops", ["reference", *ISAS], indirect=True)
@pytest.mark.parametrize(
    ("kv", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("float16", 4e-3), ("int8", 0.06)]
)
@FEW
@CASES
def test_attention(
    ops: Ops, kv: str, tolerance: float, rows: list[tuple[int, int]], block_size: int, kv_heads: int, group: int,
    head_dim: int, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    if kv != "float32":
        if ops.name == "reference":
            return
        ops = native(ops.notes[0].split()[3].rstrip(","), kv=kv)
    step, whole = make_step(rows, block_size), make_step([(c, c) for c, _ in rows], block_size)
    k, v = randn(2, len(whole.positions), kv_heads, head_dim, seed=2).unbind(0)
    q = randn(len(step.positions), kv_heads * group, head_dim, seed=1)
    found = ops.attention(q, filled(ops, whole, k, v, block_size), step, 0.3, window, soft_cap)
    wanted = naive_attention(q, naive_pages(whole, k, v, block_size), step, 0.3, window, soft_cap)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * v.abs().max()


@needs_native
@pytest.mark.parametrize("kv", ["float32", "bfloat16", "float16", "int8"])
def test_attention_of_a_row_is_the_same_alone_and_in_chunks(isa: str, kv: str) -> None:
    ops, one_thread = native(isa, kv=kv), native(isa, kv=kv, threads=1)
    rows = [(600, 1), (40, 1), (200, 200), (33, 1)]
    together, whole = make_step(rows, 16), make_step([(c, c) for c, _ in rows], 16)
    k, v = randn(2, len(whole.positions), 3, 64, seed=2).unbind(0)
    pages = filled(ops, whole, k, v, 16)
    q = randn(len(together.positions), 9, 64, seed=1)
    found = ops.attention(q, pages, together, 0.125)
    assert torch.equal(one_thread.attention(q, pages, together, 0.125), found)
    for row, (context, new) in enumerate(rows):
        tokens = slice(int(together.query_start[row]), int(together.query_start[row + 1]))
        own = together.page_ids[together.page_start[row] : together.page_start[row + 1]]
        draw, first = random.Random(row), 0
        while first < new:
            last = min(first + draw.choice([1, 2, 3, 17, 77]), new)
            alone = make_step([(context - new + last, last - first)], 16)
            alone.page_ids.copy_(own[: len(alone.page_ids)])
            assert torch.equal(ops.attention(q[tokens][first:last], pages, alone, 0.125), found[tokens][first:last])
            first = last


@needs_native
def test_pages_copied_by_index_are_the_same_pages(isa: str) -> None:
    ops = native(isa, kv="int8")
    whole = make_step([(40, 40)], 8)
    k, v = randn(2, 40, 2, 16, seed=2).unbind(0)
    kv, q = filled(ops, whole, k, v, 8), randn(40, 4, 16)
    before = ops.attention(q, kv, whole, 0.25)
    order = torch.randperm(BLOCKS)
    moved = torch.empty_like(kv).index_copy_(1, order, kv)
    whole.page_ids.copy_(order[whole.page_ids.long()])
    assert torch.equal(ops.attention(q, moved, whole, 0.25), before)


# --- the choice


@needs_native
def test_an_instruction_set_may_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.env import forced_isa
    from octavo.kernels.cpu import backend

    assert native("portable").notes == ["native kernels for portable, 2 threads"]
    monkeypatch.setattr(backend, "known_isas", lambda: ["avx2", "portable"])
    with pytest.raises(ConfigError, match="OCTAVO_CPU_ISA=avx512: this machine runs avx2, portable"):
        native("avx512")
    monkeypatch.setenv("OCTAVO_CPU_ISA", "sse9")
    with pytest.raises(ConfigError, match="OCTAVO_CPU_ISA=sse9: there are avx512, avx2 and portable"):
        forced_isa()
    monkeypatch.setenv("OCTAVO_CPU_ISA", "avx2")
    assert forced_isa() == "avx2"


def test_work_that_is_no_operation_runs_on_every_backend() -> None:
    x = torch.arange(6.0).view(3, 2)
    for ops in (REFERENCE, *(native(isa) for isa in ISAS), *([triton_ops()] if HAS_TRITON else [])):
        (found,) = ops.host("doubled", lambda y: [y * 2], [x], [Result((2,))])
        assert torch.equal(found, x * 2)
