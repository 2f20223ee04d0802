"""From stored bytes to tensors and weight layouts, whatever the format.

Called by the checkpoints. Reads through a `Source` in chunks, so beyond the result only one chunk is in memory. All is
made where the source brings its bytes: on the CPU or on a device.

Which layout a type becomes, always without loss:
    F32, F16, BF16                                Dense, as stored
    Q4_0, Q4_1, Q4_K (groups of 32), Q2_K (16)    Int4Groups
    Q8_0, Q5_0, IQ4_NL, IQ4_XS (32), Q6_K, Q3_K (16)  Int8Groups
    Q5_1, Q5_K                                    Dense f32: five bits and a minimum fit no integer layout
The layout's dequantize(float32) equals `read_dense` bit for bit, with one exception: elements of Q4_0 that are zero in
a group of negative scale are -0.0 in the format and +0.0 in the layout, which adds -8 * scale where the format takes 8
from q.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.layouts import Dense, Int4Groups, Int8Groups, Layout
from octavo.weights.formats.blocks import BLOCK_FORMATS, BlockFormat, Groups

FLOAT_FORMATS: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
FORMATS = frozenset(FLOAT_FORMATS) | frozenset(BLOCK_FORMATS)
"""Names of the types that can be read: those of GGUF, of which safetensors uses the float ones."""

CHUNK_ELEMENTS = 1 << 20
DEVICE_CHUNK_ELEMENTS = 1 << 24
"""Few launches; what is beside the result stays under 256 MiB."""
_INT4 = frozenset({"Q4_0", "Q4_1", "Q4_K", "Q2_K"})
_INT8 = frozenset({"Q8_0", "Q5_0", "Q6_K", "Q3_K", "IQ4_NL", "IQ4_XS"})


class Source(Protocol):
    """Fills `out` ([n] uint8, on `device`) with the bytes of one tensor from byte `first` on."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, out: Tensor, first: int) -> None: ...


def _spans(source: Source, count: int) -> Iterator[tuple[int, int]]:
    """First element and one past the last of each chunk."""
    size = CHUNK_ELEMENTS if source.device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
    for first in range(0, count, size):
        yield first, min(first + size, count)


@dataclass(frozen=True)
class InMemory:
    """A `Source` over `data` ([nbytes] uint8)."""

    data: Tensor

    @property
    def device(self) -> torch.device:
        return self.data.device

    def __call__(self, out: Tensor, first: int) -> None:
        out.copy_(self.data[first : first + out.numel()])


def _chunks(source: Source, form: BlockFormat, count: int) -> Iterator[tuple[int, int, Groups]]:
    """Unpack `count` elements: (first element, one past the last, their groups) per chunk."""
    for first, last in _spans(source, count):
        raw = torch.empty((last - first) // form.block, form.nbytes, dtype=torch.uint8, device=source.device)
        source(raw.view(-1), first // form.block * form.nbytes)
        yield first, last, form.unpack(raw)


def read_dense(source: Source, kind: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of any rank: dequantized in f32, then rounded to `dtype` once."""
    count = prod(shape)
    out = torch.empty(count, dtype=dtype, device=source.device)
    if kind in BLOCK_FORMATS:
        form = BLOCK_FORMATS[kind]
        for first, last, groups in _chunks(source, form, count):
            w = groups.q.float().view(-1, form.group) * groups.scales.float().view(-1, 1)
            if groups.minimums is not None:
                w += groups.minimums.float().view(-1, 1)
            out[first:last] = w.view(-1)
        return out.view(tuple(shape))
    stored = FLOAT_FORMATS[kind]
    if stored == dtype:
        source(out.view(torch.uint8), 0)
        return out.view(tuple(shape))
    for first, last in _spans(source, count):
        part = torch.empty(last - first, dtype=stored, device=source.device)
        source(part.view(torch.uint8), first * stored.itemsize)
        out[first:last] = part
    return out.view(tuple(shape))


def read_layout(source: Source, kind: str, shape: tuple[int, int], dense: torch.dtype | None = None) -> Layout:
    """A matrix [out, in] in the layout that holds it without loss; see the table above. `dense`: what a Dense one is
    rounded to."""
    if kind in _INT8:
        return _read_int8(source, BLOCK_FORMATS[kind], shape)
    if kind in _INT4:
        return _read_int4(source, BLOCK_FORMATS[kind], shape)
    dtype = torch.float32 if kind in BLOCK_FORMATS else FLOAT_FORMATS[kind]
    return Dense(read_dense(source, kind, shape, dense or dtype))


def _read_int8(source: Source, form: BlockFormat, shape: tuple[int, int]) -> Int8Groups:
    q = torch.empty(prod(shape), dtype=torch.int8, device=source.device)
    scales = torch.empty(prod(shape) // form.group, dtype=form.scale_dtype, device=source.device)
    for first, last, groups in _chunks(source, form, prod(shape)):
        q[first:last] = groups.q.view(-1)
        scales[first // form.group : last // form.group] = groups.scales.reshape(-1)
    return Int8Groups(q.view(shape), scales.view(shape[0], -1))


def _read_int4(source: Source, form: BlockFormat, shape: tuple[int, int]) -> Int4Groups:
    count = prod(shape)
    packed = torch.empty(count // 2, dtype=torch.uint8, device=source.device)
    scales = torch.empty(count // form.group, dtype=form.scale_dtype, device=source.device)
    minimums = torch.empty_like(scales)
    for first, last, (q, scale, minimum) in _chunks(source, form, count):
        if minimum is None:  # Q4_0: q is -8 .. 7
            q, minimum = q + 8, scale * -8
            if torch.isinf(minimum).any() and scales.dtype == torch.float16:
                scales, minimums = scales.float(), minimums.float()  # 8 * scale is beyond f16, not beyond f32
            if scales.dtype == torch.float32:
                minimum = scale.float() * -8
        pairs = q.view(torch.uint8).view(-1, 2)
        packed[first // 2 : last // 2] = pairs[:, 0] | pairs[:, 1] << 4
        part = slice(first // form.group, last // form.group)
        scales[part], minimums[part] = scale.reshape(-1), minimum.reshape(-1)
    rows = shape[0]
    return Int4Groups(packed.view(rows, -1), scales.view(rows, -1), minimums.view(rows, -1))


def dequantize(data: Tensor, kind: str, shape: Sequence[int]) -> Tensor:
    """The whole of `data` ([nbytes] uint8) as an f32 tensor."""
    return read_dense(InMemory(data), kind, shape, torch.float32)
