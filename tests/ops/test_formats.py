"""GGUF block types: equal bit for bit to the gguf package, as dense tensors and as lossless layouts."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from octavo.kernels.layouts import Dense, Int4Groups, Int8Groups
from octavo.modelfiles.gguf import GGML_TYPES
from octavo.weights.formats import convert
from octavo.weights.formats.blocks import BLOCK_FORMATS
from octavo.weights.formats.convert import FLOAT_FORMATS, FORMATS, dequantize, read_dense, read_layout

TYPES = [form.name for form in GGML_TYPES.values() if form.name in FORMATS and form.name != "F64"]
INT4 = {"Q4_0", "Q4_1", "Q4_K", "Q2_K"}
INT8 = {"Q8_0", "Q5_0", "Q6_K", "Q3_K", "IQ4_NL", "IQ4_XS"}
SHAPE = (7, 1024)


class Bytes:
    """A `Source` over bytes in memory that notes how much was asked for at once."""

    device = torch.device("cpu")

    def __init__(self, data: Tensor) -> None:
        self.data, self.largest = data, 0

    def __call__(self, out: Tensor, first: int) -> None:
        self.largest = max(self.largest, out.numel())
        assert first + out.numel() <= self.data.numel()
        out.copy_(self.data[first : first + out.numel()])


def random_blocks(kind: str, seed: int = 0) -> Tensor:
    """Any bytes: every q, sub-scale and sign, f16 scales from tiny to infinite and NaN."""
    form = next(form for form in GGML_TYPES.values() if form.name == kind)
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, SHAPE[0] * SHAPE[1] // form.block * form.nbytes, dtype=np.uint8))


def oracle(data: Tensor, kind: str) -> np.ndarray:
    rows = data.numpy().reshape(SHAPE[0], -1)
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(rows, GGMLQuantizationType[kind]).reshape(SHAPE)


def assert_same_bits(found: Tensor, expected: np.ndarray, zeros_of_any_sign: bool = False) -> None:
    assert found.dtype == torch.float32 and tuple(found.shape) == expected.shape
    same = found.numpy().view(np.int32) == expected.view(np.int32)
    same |= np.isnan(found.numpy()) & np.isnan(expected)
    if zeros_of_any_sign:
        same |= (found.numpy() == 0) & (expected == 0)
    assert same.all()


def test_all_types_of_the_issue_are_there() -> None:
    wanted = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS"
    assert set(wanted.split()) == set(TYPES)
    sizes = {form.name: (form.block, form.nbytes) for form in GGML_TYPES.values()}
    assert all(sizes[kind] == (form.block, form.nbytes) for kind, form in BLOCK_FORMATS.items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", TYPES)
def test_dequantize_equals_the_reference_bit_for_bit(kind: str, seed: int) -> None:
    data = random_blocks(kind, seed)
    assert_same_bits(dequantize(data, kind, SHAPE), oracle(data, kind))


@pytest.mark.parametrize("kind", TYPES)
def test_layout_holds_the_matrix_without_loss(kind: str) -> None:
    data = random_blocks(kind)
    layout = read_layout(Bytes(data), kind, SHAPE)
    if kind == "Q4_0":  # q - 8 becomes q * d - 8 * d: with an infinite d that is NaN, and -0.0 becomes 0.0
        finite = np.isfinite(oracle(data, kind))
        found = layout.dequantize(torch.float32)
        assert_same_bits(torch.where(torch.from_numpy(finite), found, 0), np.where(finite, oracle(data, kind), 0), True)
        assert not torch.isfinite(found[torch.from_numpy(~finite)]).any()
    else:
        assert_same_bits(layout.dequantize(torch.float32), oracle(data, kind))
    expected = Int4Groups if kind in INT4 else Int8Groups if kind in INT8 else Dense
    assert type(layout) is expected
    if kind in ("Q4_1", "Q8_0"):
        assert layout.nbytes == data.numel()  # not a byte more than the file


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_layouts_keep_their_type(kind: str) -> None:
    layout = read_layout(Bytes(random_blocks(kind)), kind, SHAPE)
    assert isinstance(layout, Dense) and layout.data.dtype == FLOAT_FORMATS[kind]


def test_q4_0_scale_that_is_too_large_for_a_minimum_in_f16() -> None:
    blocks = np.zeros((2, 18), np.uint8)
    blocks[0, :2] = np.array([1.5], np.float16).view(np.uint8)
    blocks[1, :2] = np.array([-30000.0], np.float16).view(np.uint8)
    blocks[:, 2:] = np.arange(16, dtype=np.uint8) * 17
    data = torch.from_numpy(blocks.reshape(-1))
    layout = read_layout(Bytes(data), "Q4_0", (2, 32))
    assert isinstance(layout, Int4Groups) and layout.scales.dtype == torch.float32
    expected = gguf.quants.dequantize(blocks, GGMLQuantizationType.Q4_0)
    assert_same_bits(layout.dequantize(torch.float32), expected, zeros_of_any_sign=True)


@pytest.mark.parametrize("kind", TYPES)
def test_in_chunks_it_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(kind)
    whole, layout = oracle(data, kind), read_layout(Bytes(data), kind, SHAPE)
    monkeypatch.setattr(convert, "CHUNK_ELEMENTS", 1536)
    source = Bytes(data)
    assert_same_bits(read_dense(source, kind, SHAPE, torch.float32), whole)
    if kind != "F32":
        assert source.largest <= 1536 * data.numel() // (SHAPE[0] * SHAPE[1])
    chunked = read_layout(Bytes(data), kind, SHAPE).dequantize(torch.float32)
    assert_same_bits(chunked, layout.dequantize(torch.float32).numpy())


@pytest.mark.parametrize("kind", TYPES)
def test_other_dtypes_are_rounded_once(kind: str) -> None:
    data = random_blocks(kind)
    expected = torch.from_numpy(oracle(data, kind)).to(torch.bfloat16)
    found = read_dense(Bytes(data), kind, SHAPE, torch.bfloat16)
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_quantized_weights_come_back_close(kind: str) -> None:
    """The order of elements within a block, seen end to end: a slope stays a slope."""
    slope = np.tile(np.linspace(-1, 1, 1024, dtype=np.float32), (SHAPE[0], 1))
    data = torch.from_numpy(gguf.quants.quantize(slope, GGMLQuantizationType[kind]).view(np.uint8).reshape(-1).copy())
    found = read_layout(Bytes(data), kind, SHAPE).dequantize(torch.float32)
    assert (found - torch.from_numpy(slope)).abs().max() < 0.15
