"""How each GGUF block type stores its elements: raw blocks → integers with a scale and perhaps a minimum per group.

Called by formats/convert.py only. Every quantized type is the same thing in the end, w = q * scale (+ minimum) with one
scale per group of neighbours along a row; the functions here only undo the packing. Invariant: products of scales are
formed in f32 in the order of the reference (ggml), so what is computed from them is equal to it bit for bit.

Names: n blocks; d the f16 scale of a block, dmin that of its minimums; "nibbles" are 4-bit halves of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """Unpacked blocks; `minimums` is added after scaling, None: nothing is."""

    q: Tensor  # [n, block] int8
    scales: Tensor  # [n, block / group] f16 or f32
    minimums: Tensor | None  # as scales


class BlockFormat(NamedTuple):
    """A quantized type: `block` elements in `nbytes` bytes, `group` of them share a scale of type `scale_dtype`."""

    block: int
    nbytes: int
    group: int
    scale_dtype: torch.dtype
    unpack: Callable[[Tensor], Groups]


# The values IQ4_NL and IQ4_XS index with their nibbles.
_IQ4_VALUES = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=torch.int8)


def _half(raw: Tensor) -> Tensor:
    """[n, 2k] bytes → [n, k] f16."""
    return raw.contiguous().view(torch.float16)


def _fields(raw: Tensor, bits: int, width: int) -> Tensor:
    """Split bytes into fields of `bits` bits: [n, m * width] → [n, m * (8 / bits) * width] int8, where each run of
    `width` bytes yields all its lowest fields, then all its next ones, and so on."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=raw.device)[:, None]
    fields = (raw.reshape(raw.shape[0], -1, 1, width) >> shifts) & ((1 << bits) - 1)
    return fields.view(raw.shape[0], -1).view(torch.int8)


def _bits(raw: Tensor) -> Tensor:
    """[n, m] bytes → [n, 8 * m] int8 of 0 and 1: bit 0 of byte 0, bit 1 of byte 0, …"""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw[:, :, None] >> shifts) & 1).view(raw.shape[0], -1).view(torch.int8)


def _iq4_values(raw: Tensor) -> Tensor:
    which = _fields(raw, 4, 16)
    return _IQ4_VALUES.to(raw.device).index_select(0, which.view(-1).int()).view(which.shape)


def _q4_0(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 2:], 4, 16) - 8, _half(b[:, :2]), None)


def _q4_1(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 4:], 4, 16), _half(b[:, :2]), _half(b[:, 2:4]))


def _q5_0(b: Tensor) -> Groups:
    return Groups((_fields(b[:, 6:], 4, 16) | _bits(b[:, 2:6]) << 4) - 16, _half(b[:, :2]), None)


def _q5_1(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 8:], 4, 16) | _bits(b[:, 4:8]) << 4, _half(b[:, :2]), _half(b[:, 2:4]))


def _q8_0(b: Tensor) -> Groups:
    return Groups(b[:, 2:].contiguous().view(torch.int8), _half(b[:, :2]), None)


def _q2_k(b: Tensor) -> Groups:
    sub, d, dmin = b[:, :16], _half(b[:, 80:82]).float(), _half(b[:, 82:84]).float()
    return Groups(_fields(b[:, 16:80], 2, 32), d * (sub & 15), -(dmin * (sub >> 4)))


def _q3_k(b: Tensor) -> Groups:
    # The third bit of an element is stored inverted: absent means minus 4.
    high, low, sub, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110]).float()
    q = _fields(low, 2, 32) - (4 - 4 * _fields(high, 1, 32))
    scales = (_fields(sub[:, :8], 4, 8) | _fields(sub[:, 8:], 2, 4) << 4) - 32
    return Groups(q, d * scales, None)


def _k_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """The first 16 bytes of Q4_K and Q5_K: d, dmin and eight 6-bit scales and minimums → both [n, 8] f32."""
    d, dmin = _half(b[:, :2]).float(), _half(b[:, 2:4]).float()
    low_scale, low_min, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat([low_scale & 63, rest & 15 | low_scale >> 6 << 4], dim=1)
    minimum = torch.cat([low_min & 63, rest >> 4 | low_min >> 6 << 4], dim=1)
    return d * scale, -(dmin * minimum)


def _q4_k(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 16:], 4, 32), *_k_scales(b))


def _q5_k(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 48:], 4, 32) | _fields(b[:, 16:48], 1, 32) << 4, *_k_scales(b))


def _q6_k(b: Tensor) -> Groups:
    q = (_fields(b[:, :128], 4, 64) | _fields(b[:, 128:192], 2, 32) << 4) - 32
    sub = b[:, 192:208].contiguous().view(torch.int8)
    return Groups(q, _half(b[:, 208:210]).float() * sub, None)


def _iq4_nl(b: Tensor) -> Groups:
    return Groups(_iq4_values(b[:, 2:]), _half(b[:, :2]), None)


def _iq4_xs(b: Tensor) -> Groups:
    high = _fields(b[:, 2:4], 2, 1)  # eight 2-bit fields of a little-endian uint16
    sub = (_fields(b[:, 4:8], 4, 1) | high << 4) - 32
    return Groups(_iq4_values(b[:, 8:]), _half(b[:, :2]).float() * sub, None)


BLOCK_FORMATS: dict[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, 32, torch.float16, _q4_0),
    "Q4_1": BlockFormat(32, 20, 32, torch.float16, _q4_1),
    "Q5_0": BlockFormat(32, 22, 32, torch.float16, _q5_0),
    "Q5_1": BlockFormat(32, 24, 32, torch.float16, _q5_1),
    "Q8_0": BlockFormat(32, 34, 32, torch.float16, _q8_0),
    "Q2_K": BlockFormat(256, 84, 16, torch.float32, _q2_k),
    "Q3_K": BlockFormat(256, 110, 16, torch.float32, _q3_k),
    "Q4_K": BlockFormat(256, 144, 32, torch.float32, _q4_k),
    "Q5_K": BlockFormat(256, 176, 32, torch.float32, _q5_k),
    "Q6_K": BlockFormat(256, 210, 16, torch.float32, _q6_k),
    "IQ4_NL": BlockFormat(32, 18, 32, torch.float16, _iq4_nl),
    "IQ4_XS": BlockFormat(256, 136, 32, torch.float32, _iq4_xs),
}
