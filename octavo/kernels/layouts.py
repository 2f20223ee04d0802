"""Weight layouts: the few forms in which kernels take a matrix. Every file format becomes one of these at load.

All describe a matrix W of shape [out_features, in_features] for y = x @ W.T. Quantization groups run along
in_features. `shard`, `fuse` and `dequantize` are the only things the rest of the house does with them. A backend brings
them to its own form once at load (`ops.prepare`); to multiply is `ops.linear(x, prepared)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

L = TypeVar("L", bound="Layout")
S = TypeVar("S", bound="_Scaled")
_ELEMENTS_AT_ONCE = 1 << 20

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The compute types by their names in the configuration."""


class Prepared(Protocol):
    """A matrix in the form a backend wants. Shapes are those of the full-precision matrix."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int: ...

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[out, in] dense matrix in `dtype`, computed in f32."""
        ...


class PreparedExperts(Protocol):
    """One matrix per expert of a mixture, in the form a backend wants."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, out, in)."""
        ...

    @property
    def nbytes(self) -> int: ...

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[experts, out, in] dense in `dtype`, computed in f32."""
        ...


P = TypeVar("P", bound=Prepared)


@dataclass(frozen=True)
class EachPrepared(Generic[P]):
    """A matrix for each expert, as the backend's own products take it. Implements PreparedExperts."""

    matrices: tuple[P, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.matrices), *self.matrices[0].shape

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return torch.stack([matrix.dequantize(dtype) for matrix in self.matrices])


class Layout(Prepared, Protocol):
    """What every layout can do."""

    def shard(self: L, dim: int, rank: int, world_size: int) -> L:
        """Part `rank` of `world_size` equal parts along dim 0 (out) or 1 (in, whole groups)."""
        ...

    def fuse(self: L, others: Sequence[L]) -> L:
        """Stack along out_features with others of the same form (QKV, gate-up); `same_form` says whether they are."""
        ...

    def take_rows(self: L, index: Tensor) -> L:
        """The out_features in the order of `index` (GGUF stores Llama's q and k rows permuted)."""
        ...

    def take_columns(self, order: Tensor, width: int) -> Layout:
        """The in_features, so many at a time, in `order` (GGUF stores the heads of delta nets in another one). Dense
        where a group of scales reaches over several of them."""
        ...


def _part(x: Tensor, dim: int, rank: int, world_size: int) -> Tensor:
    size, rest = divmod(x.shape[dim], world_size)
    assert rest == 0, f"{x.shape[dim]} along dim {dim} does not divide by {world_size} ranks"
    return x.narrow(dim, rank * size, size).contiguous()


def _reordered(x: Tensor, order: Tensor, width: int) -> Tensor:
    """[rows, columns]: its columns, `width` at a time, in `order`."""
    return x.view(x.shape[0], -1, width)[:, order].flatten(1).contiguous()


def _dense(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rows: Callable[[slice], Tensor]) -> Tensor:
    """[out, in] in `dtype` from a function that makes some rows in f32. A few rows at a time: an embedding at once
    would take several f32 copies of itself."""
    out = torch.empty(shape, dtype=dtype, device=device)
    step = max(1, _ELEMENTS_AT_ONCE // shape[1])
    for first in range(0, shape[0], step):
        part = slice(first, first + step)
        out[part] = rows(part)
    return out


@dataclass(frozen=True)
class Dense:
    """f32, bf16 or f16 as it is."""

    data: Tensor  # [out, in]

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.data.shape[1]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.data.to(dtype)

    def shard(self, dim: int, rank: int, world_size: int) -> Dense:
        return Dense(_part(self.data, dim, rank, world_size))

    def fuse(self, others: Sequence[Dense]) -> Dense:
        return Dense(torch.cat([self.data, *(o.data for o in others)]))

    def take_rows(self, index: Tensor) -> Dense:
        return Dense(self.data[index])

    def take_columns(self, order: Tensor, width: int) -> Dense:
        return Dense(_reordered(self.data, order, width))


@dataclass(frozen=True)
class _Scaled:
    """w = q * scale, symmetric, one scale per group of in_features."""

    q: Tensor  # [out, in], one byte each
    scales: Tensor  # [out, in / group] f16, bf16 or f32

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scales.nbytes

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        def rows(part: slice) -> Tensor:
            q, scales = self.q[part].float(), self.scales[part].float()
            return (q.view(q.shape[0], -1, self.group) * scales.unsqueeze(-1)).view(q.shape)

        return _dense(self.shape, dtype, self.q.device, rows)

    def shard(self: S, dim: int, rank: int, world_size: int) -> S:
        return type(self)(_part(self.q, dim, rank, world_size), _part(self.scales, dim, rank, world_size))

    def fuse(self: S, others: Sequence[S]) -> S:
        assert same_form([self, *others]), "fuse takes one layout with one group size"
        return type(self)(
            torch.cat([self.q, *(o.q for o in others)]), torch.cat([self.scales, *(o.scales for o in others)])
        )

    def take_rows(self: S, index: Tensor) -> S:
        return type(self)(self.q[index], self.scales[index])

    def take_columns(self: S, order: Tensor, width: int) -> S | Dense:
        if width % self.group:
            return Dense(_reordered(self.dequantize(torch.float32), order, width))
        scales = _reordered(self.scales, order, width // self.group)
        return type(self)(_reordered(self.q, order, width), scales)


class Int8Groups(_Scaled):
    """q is int8.

    GGUF: Q8_0, Q5_0, IQ4_NL with f16 scales and IQ4_XS with f32, groups of 32; Q6_K, Q3_K with f32, groups of 16.
    """


class Float8Groups(_Scaled):
    """q is float8_e4m3fn; a group may be the whole row, which is then cut along out_features only.

    Backends without products of it (the reference, the native one) make it dense at load.
    """


@dataclass(frozen=True)
class Int4Groups:
    """w = q * scale + minimum, q in 0..15, per group of in_features.

    GGUF: Q4_0, Q4_1 with f16 scales and Q4_K with f32, groups of 32; Q2_K with f32, groups of 16.
    Byte j of a row holds element 2j in its low and 2j + 1 in its high half.
    """

    packed: Tensor  # [out, in / 2] uint8
    scales: Tensor  # [out, in / group] f16, bf16 or f32
    minimums: Tensor  # [out, in / group], the type of scales; added after scaling

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * 2

    @property
    def group(self) -> int:
        return self.packed.shape[1] * 2 // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.minimums.nbytes

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        def rows(part: slice) -> Tensor:
            packed = self.packed[part]
            q = torch.stack((packed & 15, packed >> 4), dim=-1).view(packed.shape[0], -1, self.group).float()
            scales, minimums = self.scales[part].float(), self.minimums[part].float()
            return (q * scales.unsqueeze(-1) + minimums.unsqueeze(-1)).view(packed.shape[0], -1)

        return _dense(self.shape, dtype, self.packed.device, rows)

    def shard(self, dim: int, rank: int, world_size: int) -> Int4Groups:
        return Int4Groups(
            _part(self.packed, dim, rank, world_size),
            _part(self.scales, dim, rank, world_size),
            _part(self.minimums, dim, rank, world_size),
        )

    def fuse(self, others: Sequence[Int4Groups]) -> Int4Groups:
        assert same_form([self, *others]), "fuse takes one layout with one group size"
        return Int4Groups(
            torch.cat([self.packed, *(o.packed for o in others)]),
            torch.cat([self.scales, *(o.scales for o in others)]),
            torch.cat([self.minimums, *(o.minimums for o in others)]),
        )

    def take_rows(self, index: Tensor) -> Int4Groups:
        return Int4Groups(self.packed[index], self.scales[index], self.minimums[index])

    def take_columns(self, order: Tensor, width: int) -> Int4Groups | Dense:
        if width % self.group:
            return Dense(_reordered(self.dequantize(torch.float32), order, width))
        scales, minimums = (_reordered(x, order, width // self.group) for x in (self.scales, self.minimums))
        return Int4Groups(_reordered(self.packed, order, width // 2), scales, minimums)


def same_form(weights: Sequence[Layout]) -> bool:
    """Whether `fuse` takes these together: one layout, one group size, one in_features. Files mix types, so the parts
    of one fused product may differ (Q4_K for q and k beside Q6_K for v)."""
    groups = [weight.group if isinstance(weight, (_Scaled, Int4Groups)) else 0 for weight in weights]
    return len({(type(weight), weight.shape[1], group) for weight, group in zip(weights, groups, strict=True)}) == 1


def fused_neighbours(parts: Sequence[Layout]) -> list[Layout]:
    """The parts of one matrix, in order, those that `fuse` takes joined: as few products as their forms allow."""
    runs: list[list[Layout]] = []
    for part in parts:
        if runs and same_form([runs[-1][0], part]):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [run[0].fuse(run[1:]) if len(run) > 1 else run[0] for run in runs]
