"""Checkpoints: what is read equals what the safetensors and gguf packages read, and what cannot be read is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
import torch
from mapped import mapped_bytes
from safetensors.torch import save_file
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.kernels.layouts import Dense, Int4Groups, Int8Groups
from octavo.modelfiles.files import ModelFiles, locate
from octavo.weights import mapping
from octavo.weights.checkpoint import Checkpoint, open_checkpoint

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def folder_of(path: Path) -> ModelFiles:
    (path / "config.json").write_text("{}")
    return locate(path)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(), (5,), (3, 4), (2, 3, 4), (64, 32)]
    return {
        f"layer.{i}.{dtype}".replace("torch.", ""): torch.randn(shape, generator=random).to(dtype)
        for i, shape in enumerate(shapes)
        for dtype in DTYPES
    }


def assert_reads(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert checkpoint.names() == set(tensors)
    for name, expected in tensors.items():
        assert checkpoint.shape(name) == tuple(expected.shape)
        assert torch.equal(checkpoint.tensor(name, expected.dtype), expected)
        assert torch.equal(checkpoint.tensor(name, torch.bfloat16), expected.to(torch.bfloat16))
        if expected.ndim == 2:
            found = checkpoint.matrix(name)
            assert isinstance(found, Dense) and found.data.dtype == expected.dtype
            assert torch.equal(found.data, expected)


def test_single_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_checkpoint(folder_of(tmp_path)) as checkpoint:
        assert_reads(checkpoint, tensors)
        with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as oracle:
            for name in oracle.keys():  # noqa: SIM118 (not a mapping)
                found = oracle.get_tensor(name)
                assert torch.equal(checkpoint.tensor(name, found.dtype), found)


def test_sharded_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    places = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(folder_of(tmp_path)) as checkpoint:
        assert_reads(checkpoint, tensors)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[np.ndarray, str]]]:
    """A GGUF file by the gguf package's writer, with what its dequantizer makes of each tensor."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    random, expected = np.random.default_rng(0), {}
    for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32"):
        number = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(random.standard_normal((6, 64), dtype=np.float32), number)
        expected[f"{kind}.weight"] = (gguf.quants.dequantize(data, number), kind)
        writer.add_tensor(f"{kind}.weight", data, raw_dtype=number)
    norm = random.standard_normal(7, dtype=np.float32)
    expected["norm.weight"] = (norm, "F32")
    writer.add_tensor("norm.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, expected


def test_gguf_of_every_kind(written: tuple[Path, dict[str, tuple[np.ndarray, str]]]) -> None:
    path, expected = written
    with open_checkpoint(locate(path)) as checkpoint:
        assert checkpoint.names() == set(expected)
        for name, (values, kind) in expected.items():
            assert checkpoint.shape(name) == values.shape
            assert torch.equal(checkpoint.tensor(name, torch.float32), torch.from_numpy(values))
            if values.ndim == 2:
                found = checkpoint.matrix(name)
                assert torch.equal(found.dequantize(torch.float32), torch.from_numpy(values)), kind


def test_a_matrix_is_asked_for_what_is_none(written: tuple[Path, dict[str, tuple[np.ndarray, str]]]) -> None:
    with open_checkpoint(locate(written[0])) as checkpoint:
        with pytest.raises(ModelFileError, match=r"m.gguf: tensor 'norm.weight': shape \[7\] is not a matrix"):
            checkpoint.matrix("norm.weight")
        for read in (checkpoint.shape, checkpoint.matrix, lambda name: checkpoint.tensor(name, torch.float32)):
            with pytest.raises(ModelFileError, match=r"m.gguf: tensor 'absent.weight' is missing"):
                read("absent.weight")


@pytest.mark.long
def test_demo_model_equals_the_gguf_package(demo_gguf: Path) -> None:
    kinds = {"Q4_1": Int4Groups, "Q8_0": Int8Groups}
    with open_checkpoint(locate(demo_gguf)) as checkpoint:
        for wanted in gguf.GGUFReader(demo_gguf).tensors:
            if not wanted.name.startswith(("blk.0.", "blk.29.", "output", "token_embd")):
                continue
            expected = torch.from_numpy(gguf.quants.dequantize(wanted.data, wanted.tensor_type).copy())
            assert torch.equal(checkpoint.tensor(wanted.name, torch.float32), expected)
            if expected.ndim == 2:
                layout = checkpoint.matrix(wanted.name)
                assert type(layout) is kinds[wanted.tensor_type.name] and layout.nbytes == wanted.n_bytes
                assert torch.equal(layout.dequantize(torch.float32), expected)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_pages_are_given_back(demo_gguf: Path) -> None:
    with open_checkpoint(locate(demo_gguf)) as checkpoint:
        checkpoint.matrix("blk.0.attn_q.weight")
        before, most = mapped_bytes(demo_gguf), 0
        for name in sorted(checkpoint.names()):
            if name == "token_embd.weight" or name.startswith("blk.1"):
                checkpoint.tensor(name, torch.bfloat16)
                most = max(most, mapped_bytes(demo_gguf))
    assert most - before < 8 << 20, "a 30 MB tensor must not stay mapped"


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.arange(12.0).view(3, 4)}, tmp_path / "model.safetensors")
    with open_checkpoint(folder_of(tmp_path)) as checkpoint:
        tensor, layout = checkpoint.tensor("a", torch.float32), checkpoint.matrix("a")
    checkpoint.close()  # twice is harmless
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(tensor, torch.arange(12.0).view(3, 4))
    assert torch.equal(layout.dequantize(torch.float32), tensor)
    assert checkpoint.names() == set()


def test_large_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    save_file({"a": expected, "b": expected.to(torch.bfloat16)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(mapping, "PIECE_BYTES", 100)
    with open_checkpoint(folder_of(tmp_path)) as checkpoint:
        assert torch.equal(checkpoint.tensor("a", torch.float32), expected)
        assert torch.equal(checkpoint.tensor("b", torch.float32), expected.to(torch.bfloat16).float())


def test_types_that_are_no_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    with open_checkpoint(folder_of(tmp_path)) as checkpoint:
        with pytest.raises(ModelFileError, match=r"model.safetensors: tensor 'a': type I64 is not supported"):
            checkpoint.matrix("a")
        with pytest.raises(ModelFileError, match=r"type I64 is not supported"):
            checkpoint.tensor("a", torch.float32)


def test_file_that_shrinks_after_its_header_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64, 64)}, path)
    real = mapping.MappedFile

    def shrinking(file: Path) -> mapping.MappedFile:
        with file.open("r+b") as opened:
            opened.truncate(1000)
        return real(file)

    monkeypatch.setattr("octavo.weights.safetensors.MappedFile", shrinking)
    with (
        open_checkpoint(folder_of(tmp_path)) as checkpoint,
        pytest.raises(ModelFileError, match=r"model.safetensors: ends before byte"),
    ):
        checkpoint.tensor("a", torch.float32)


def corrupt(tmp_path: Path) -> Iterator[tuple[ModelFiles, str]]:
    folder = folder_of(tmp_path)
    yield folder, "holds neither model.safetensors"
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    yield folder, "pytorch_model.bin: pickled weights are never loaded"
    save_file({"a": torch.zeros(8)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    yield folder, "model.safetensors: tensor 'a': data_offsets [0, 32] run past the end"
    gguf_file = tmp_path / "m.gguf"
    gguf_file.write_bytes(b"GGUF" + bytes(20))
    yield locate(gguf_file), "m.gguf: header: GGUF version 0"
    gguf_file.write_bytes(b"GGUF\3" + bytes(19))
    yield locate(gguf_file), "m.gguf: holds no tensors"


def test_corrupt_files_are_refused_when_opened(tmp_path: Path) -> None:
    for files, message in corrupt(tmp_path):
        with pytest.raises(ModelFileError) as error:
            open_checkpoint(files)
        assert message in error.value.message


def test_damaged_demo_file_is_refused(demo_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    with demo_gguf.open("rb") as source:
        path.write_bytes(source.read(40 << 20))
    with pytest.raises(ModelFileError, match=r"cut.gguf: tensor 'blk.+': its \d+ bytes at \d+ run past the end"):
        open_checkpoint(locate(path))
