"""Weight layouts: shard, fuse, take_rows, take_columns and dequantize mean the same as on the dense matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.kernels import layouts
from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups, Layout, same_form

ROWS, COLUMNS = 12, 256


def dense(seed: int, dtype: torch.dtype = torch.float32) -> Dense:
    return Dense(torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)).to(dtype))


def int8(seed: int, group: int = 32, dtype: torch.dtype = torch.float16) -> Int8Groups:
    random = torch.Generator().manual_seed(seed)
    q = torch.randint(-128, 128, (ROWS, COLUMNS), generator=random, dtype=torch.int8)
    return Int8Groups(q, torch.randn(ROWS, COLUMNS // group, generator=random).to(dtype))


def fp8(seed: int, group: int = 128, dtype: torch.dtype = torch.float32) -> Float8Groups:
    random = torch.Generator().manual_seed(seed)
    q = torch.randn(ROWS, COLUMNS, generator=random).mul(30).to(torch.float8_e4m3fn)
    return Float8Groups(q, torch.rand(ROWS, COLUMNS // group, generator=random).to(dtype))


def int4(seed: int, group: int = 32, dtype: torch.dtype = torch.float16) -> Int4Groups:
    random = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (ROWS, COLUMNS // 2), generator=random, dtype=torch.uint8)
    scales = torch.randn(2, ROWS, COLUMNS // group, generator=random).to(dtype)
    return Int4Groups(packed, scales[0], scales[1])


MAKERS: dict[str, Callable[[int], Layout]] = {
    "dense f32": dense,
    "dense bf16": lambda seed: dense(seed, torch.bfloat16),
    "int8": int8,
    "int8 groups of 16, f32": lambda seed: int8(seed, 16, torch.float32),
    "fp8": fp8,
    "fp8 groups of 32, f16": lambda seed: fp8(seed, 32, torch.float16),
    "int4": int4,
    "int4 groups of 128, bf16": lambda seed: int4(seed, 128, torch.bfloat16),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[int], Layout]:
    return MAKERS[request.param]


def full(weight: Layout) -> Tensor:
    return weight.dequantize(torch.float32)


def same(a: Layout, b: Tensor) -> None:
    assert a.shape == tuple(b.shape)
    assert torch.equal(full(a), b)


def test_int8_means_q_times_scale() -> None:
    weight = int8(0)
    expected = torch.empty(ROWS, COLUMNS)
    for row in range(ROWS):
        for column in range(COLUMNS):
            expected[row, column] = float(weight.q[row, column]) * weight.scales[row, column // 32].float()
    same(weight, expected)


def test_int4_means_q_times_scale_plus_minimum() -> None:
    weight = int4(0)
    expected = torch.empty(ROWS, COLUMNS)
    for row in range(ROWS):
        for column in range(COLUMNS):
            byte = int(weight.packed[row, column // 2])
            q = byte >> 4 if column % 2 else byte & 15
            scale, minimum = weight.scales[row, column // 32].float(), weight.minimums[row, column // 32].float()
            expected[row, column] = q * scale + minimum
    same(weight, expected)


def test_fp8_means_q_times_scale() -> None:
    weight = fp8(0, COLUMNS)
    assert weight.group == COLUMNS and weight.q.dtype == torch.float8_e4m3fn
    same(weight, weight.q.float() * weight.scales)


def test_a_group_of_the_whole_row_is_cut_along_rows_only() -> None:
    weight = fp8(0, COLUMNS)
    same(weight.shard(0, 1, 2), full(weight)[ROWS // 2 :])
    with pytest.raises(AssertionError, match="does not divide"):
        weight.shard(1, 0, 2)


def test_shape_group_and_bytes() -> None:
    assert int8(0).shape == int4(0).shape == (ROWS, COLUMNS)
    assert (int8(0, 16).group, int4(0, 64).group) == (16, 64)
    assert int8(0).nbytes == ROWS * (COLUMNS + 2 * COLUMNS // 32)
    assert int4(0).nbytes == ROWS * (COLUMNS // 2 + 2 * 2 * COLUMNS // 32)
    assert dense(0, torch.bfloat16).nbytes == 2 * ROWS * COLUMNS


def test_dequantize_rounds_once_and_in_pieces(make: Callable[[int], Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = make(1)
    whole = full(weight)
    monkeypatch.setattr(layouts, "_ELEMENTS_AT_ONCE", 5 * COLUMNS)  # 12 rows as 5 + 5 + 2
    assert torch.equal(full(weight), whole)
    assert torch.equal(weight.dequantize(torch.bfloat16), whole.to(torch.bfloat16))


@pytest.mark.parametrize("width", [128, 32, 8])
def test_take_columns(make: Callable[[int], Layout], width: int) -> None:
    """At its own width where no group of scales is cut, else dense."""
    weight, order = make(1), torch.randperm(COLUMNS // width, generator=torch.Generator().manual_seed(2))
    found = weight.take_columns(order, width)
    index = (order[:, None] * width + torch.arange(width)).flatten()
    same(found, full(weight)[:, index])
    group = getattr(weight, "group", 1)
    assert type(found) is (Dense if width % group else type(weight))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("dim", [0, 1])
def test_shards_are_the_parts(make: Callable[[int], Layout], dim: int, world_size: int) -> None:
    weight = make(2)
    parts = [weight.shard(dim, rank, world_size) for rank in range(world_size)]
    for part, expected in zip(parts, full(weight).chunk(world_size, dim), strict=True):
        same(part, expected)
    assert sum(part.nbytes for part in parts) == weight.nbytes


def test_shards_are_whole_groups(make: Callable[[int], Layout]) -> None:
    with pytest.raises(AssertionError, match="does not divide"):
        make(2).shard(1, 0, 3)
    with pytest.raises(AssertionError, match="does not divide"):
        int4(0, 128).shard(1, 0, 4)  # half a group each


def test_fuse_stacks_rows(make: Callable[[int], Layout]) -> None:
    parts = [make(seed) for seed in (3, 4, 5)]
    same(parts[0].fuse(parts[1:]), torch.cat([full(part) for part in parts]))
    same(parts[0].fuse([]), full(parts[0]))


def test_fuse_refuses_other_groups_and_layouts() -> None:
    with pytest.raises(AssertionError, match="one group size"):
        int8(0, 32).fuse([int8(0, 16)])
    with pytest.raises(AssertionError, match="one layout"):
        int4(0).fuse([int8(0)])  # type: ignore[list-item]


def test_same_form() -> None:
    assert same_form([int8(0), int8(1), int8(2)]) and same_form([dense(0), dense(1)]) and same_form([int4(0)])
    assert not same_form([int8(0), int8(1, 16)])
    assert not same_form([int4(0), int8(0)])
    assert same_form([fp8(0, 32), fp8(1, 32)]) and not same_form([fp8(0, 32), int8(0, 32)])
    assert not same_form([dense(0), Dense(torch.zeros(3, 5))])


def test_take_rows(make: Callable[[int], Layout]) -> None:
    weight, index = make(6), torch.tensor([3, 0, 11, 3])
    same(weight.take_rows(index), full(weight)[index])


def test_shard_of_fused_and_taken(make: Callable[[int], Layout]) -> None:
    index = torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(0))
    weight, other = make(7), make(8)
    expected = torch.cat([full(weight), full(other)])[index][ROWS:, : COLUMNS // 2]
    same(weight.fuse([other]).take_rows(index).shard(0, 1, 2).shard(1, 0, 2), expected)
