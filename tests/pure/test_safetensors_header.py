"""Safetensors headers and the index of shards: agreement with the safetensors library, and every way to be wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ModelFileError
from octavo.modelfiles.safetensors import INDEX_FILE, MAX_HEADER_BYTES, find_tensors, read_header


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def build(header: dict[str, Any] | str, size: int) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


GOOD = {"a": entry([2, 3], 0, 24), "b": entry([4], 24, 32, "F16")}


def test_reads_places(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(build({"__metadata__": {"format": "pt"}, **GOOD}, 32))
    header = read_header(path)
    start = path.stat().st_size - 32
    assert header.metadata == {"format": "pt"}
    found = [(t.name, t.dtype, t.shape, t.offset - start, t.nbytes) for t in header.tensors.values()]
    assert found == [("a", "F32", (2, 3), 0, 24), ("b", "F16", (4,), 24, 8)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["f4", "f2", "i8", "u1"]), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_same_as_the_library(tmp_path: Path, wanted: dict[str, tuple[str, list[int]]]) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in wanted.items()}
    safetensors.numpy.save_file(arrays, path)
    header = read_header(path)
    assert {t.name: t.shape for t in header.tensors.values()} == {name: a.shape for name, a in arrays.items()}
    assert all(header.tensors[name].nbytes == a.nbytes for name, a in arrays.items())


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(build({f"t{i}": entry([1], 4 * i, 4 * i + 4) for i in range(100_000)}, 400_000))
    assert len(read_header(path).tensors) == 100_000  # comparing each with each would run into the test's time limit


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "length 0": (struct.pack("<Q", 0) + bytes(20), "too short"),
    "length 7 in 15": (struct.pack("<Q", 8) + b"{}     ", "header of 8 bytes"),
    "length 2^63": (struct.pack("<Q", 2**63) + b"{}" + bytes(20), "header of 9223372036854775808 bytes"),
    "length 2^64-1": (b"\xff" * 8 + b"{}" + bytes(20), "header of"),
    "not JSON": (build("{x}", 0), "not valid JSON"),
    "no object": (build("[1]", 0), "not a safetensors file"),
    "not UTF-8": (struct.pack("<Q", 4) + b'{"\xff}', "not valid JSON"),
    "deep": (build('{"a":' + "[" * 100_000, 0), "nested too deeply"),
    "duplicate names": (build('{"a": {}, "a": {}}', 0), "'a' appears twice"),
    "duplicate keys": (build('{"a": {"dtype": "F32", "dtype": "F16"}}', 0), "'dtype' appears twice"),
    "metadata": (build({"__metadata__": {"a": 1}}, 0), "__metadata__"),
    "entry not an object": (build({"a": 3}, 0), "'a': needs exactly"),
    "entry without dtype": (build({"a": {"shape": [], "data_offsets": [0, 4]}}, 4), "'a': needs exactly"),
    "dtype unknown": (build({"a": entry([1], 0, 4, "F31")}, 4), "'a': unknown dtype 'F31'"),
    "dtype not a string": (build({"a": entry([1], 0, 4, [])}, 4), "'a': unknown dtype"),
    "shape negative": (build({"a": entry([-1], 0, 4)}, 4), "'a': shape"),
    "shape float": (build({"a": entry([1.0], 0, 4)}, 4), "'a': shape"),
    "shape bool": (build({"a": entry([True], 0, 4)}, 4), "'a': shape"),
    "shape not a list": (build({"a": {**entry([1], 0, 4), "shape": 1}}, 4), "'a': shape"),
    "shape of too many": (build({"a": entry([1] * 9, 0, 4)}, 4), "'a': shape"),
    "shape wraps to 0": (build({"a": entry([2**32, 2**32], 0, 0)}, 0), "'a': shape"),
    "shape wraps to 4": (build({"a": entry([4194305, 4194305, 211106198978564], 0, 16)}, 16), "'a': shape"),
    "shape and range": (build({"a": entry([2], 0, 4)}, 4), "'a': shape [2] of F32 takes 8 bytes"),
    "range reversed": (build({"a": entry([1], 4, 0)}, 4), "'a': data_offsets [4, 0] end before"),
    "range past the end": (build({"a": entry([2], 0, 8)}, 4), "'a': data_offsets [0, 8] run past the end"),
    "range negative": (build({"a": entry([1], -4, 0)}, 4), "'a': data_offsets"),
    "range of three": (build({"a": {**entry([1], 0, 4), "data_offsets": [0, 4, 4]}}, 4), "'a': data_offsets"),
    "overlap": (build({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, 8), "'b': its data overlaps"),
    "same place": (build({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4), "its data overlaps"),
    "hole": (build({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12), "'b': its data leaves a hole"),
    "hole at the start": (build({"a": entry([1], 4, 8)}, 8), "'a': its data leaves a hole"),
    "empty tensor inside another": (build({"a": entry([2], 0, 8), "z": entry([0], 4, 4)}, 8), "'z': its data overlaps"),
    "bytes left over": (build({"a": entry([1], 0, 4)}, 5), "1 bytes at the end belong to no tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as error:
        read_header(path)
    assert error.value.message.startswith("m.safetensors: ") and message in error.value.message


def test_header_too_long_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 101_000_000))
        file.truncate(200_000_000)
    with pytest.raises(ModelFileError, match=f"at most {MAX_HEADER_BYTES}"):
        read_header(path)


def test_truncated_or_damaged_anywhere(tmp_path: Path) -> None:
    good, path = build(GOOD, 32), tmp_path / "m.safetensors"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(ModelFileError):
            read_header(path)
    for position in range(len(good) - 32):
        for byte in {0, 0x7F, 0xFF, good[position] ^ 1} - {good[position]}:
            path.write_bytes(good[:position] + bytes([byte]) + good[position + 1 :])
            try:
                header = read_header(path)
            except ModelFileError as error:
                assert error.message.startswith("m.safetensors: ")
            else:  # a changed letter of a name, or a dtype of the same size
                assert sum(t.nbytes for t in header.tensors.values()) == 32


# ---- folders


def make_shards(folder: Path, weight_map: Any) -> None:
    for file, name in (("s-1.safetensors", "a"), ("s-2.safetensors", "b")):
        (folder / file).write_bytes(build({name: entry([1], 0, 4)}, 4))
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(tmp_path: Path) -> None:
    make_shards(tmp_path, {"a": "s-1.safetensors", "b": "s-2.safetensors"})
    found = find_tensors(tmp_path)
    assert {path.name: set(header.tensors) for path, header in found.items()} == {
        "s-1.safetensors": {"a"},
        "s-2.safetensors": {"b"},
    }


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is missing"),
        ({}, "weight_map is missing"),
        ([], "weight_map is missing"),
        ({"a": "../s-1.safetensors"}, "'a': '../s-1.safetensors' is not the name"),
        ({"a": "/etc/s-1.safetensors"}, "is not the name"),
        ({"a": "..\\s-1.safetensors"}, "is not the name"),
        ({"a": "s-1.safetensors\0.safetensors"}, "is not the name"),
        ({"a": "sub/s-1.safetensors"}, "is not the name"),
        ({"a": 3}, "is not the name"),
        ({"a": "s-1.bin"}, "is not the name"),
        ({"a": "s-1.safetensors", "b": "s-3.safetensors"}, "s-3.safetensors: no such file"),
        ({"a": "s-1.safetensors", "b": "s-1.safetensors"}, "s-1.safetensors: tensor 'b' is missing"),
        ({"a": "s-1.safetensors", "c": "s-2.safetensors"}, "tensor 'b' is here, but nowhere"),
        ({"a": "s-2.safetensors", "b": "s-1.safetensors"}, "tensor 'a' is here, but in s-2.safetensors"),
    ],
)
def test_wrong_index(tmp_path: Path, weight_map: Any, message: str) -> None:
    make_shards(tmp_path, weight_map)
    with pytest.raises(ModelFileError) as error:
        find_tensors(tmp_path)
    assert message in error.value.message


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    make_shards(tmp_path, {"a": "s-1.safetensors", "b": "s-2.safetensors"})
    (tmp_path / "s-2.safetensors").write_bytes(build({"a": entry([1], 0, 4), "b": entry([1], 4, 8)}, 8))
    with pytest.raises(ModelFileError, match=r"s-2.safetensors: tensor 'a' is here, but in s-1.safetensors"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ModelFileError, match=f"{name}: pickled weights are never loaded"):
        find_tensors(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"holds neither model.safetensors nor"):
        find_tensors(tmp_path)
