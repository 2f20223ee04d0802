"""The GGUF header reader: right files are read right, wrong ones are refused quickly, by name and without memory."""

from __future__ import annotations

import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_bytes import ARRAY, BOOL, F32, I32, I64, STRING, U8, U32, U64, File, kv, kv_array, string, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

from octavo.errors import ModelFileError
from octavo.modelfiles.gguf import GGML_TYPES, GGUFHeader, IncompleteError, read_beginning, read_header

NEGATIVE = 2**64 - 1
HUGE = 0x7FFFFFFFFFFFFFC0


def read(tmp_path: Path, content: bytes) -> GGUFHeader:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return read_header(path)


def changed(change: Callable[[File], None]) -> bytes:
    file = File()
    change(file)
    return file.build()


@pytest.mark.parametrize("version", [2, 3])
def test_reads_metadata_and_places_of_tensors(tmp_path: Path, version: int) -> None:
    content = File(version=version).build()
    header = read(tmp_path, content)
    start = len(content) - len(File().data)
    assert (header.version, header.alignment) == (version, 32)
    assert header.metadata == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "general.flag": True,
        "general.numbers": [1.0, -2.5],
        "tokenizer.ggml.tokens": ["a", "bc", "é", ""],
    }
    assert [(t.name, t.shape, t.type, t.offset - start, t.nbytes) for t in header.tensors.values()] == [
        ("token_embd.weight", (4, 64), 0, 0, 1024),
        ("blk.0.attn_q.weight", (3, 64), 3, 1024, 120),
        ("norm.weight", (5,), 0, 1152, 20),
    ]


def test_every_scalar_type_and_alignment(tmp_path: Path) -> None:
    scalars = [("u8", U8, 255), ("i32", I32, -7), ("u64", U64, 2**64 - 1), ("i64", I64, -(2**63)), ("f64", 12, 0.1)]
    keys = [kv(name, kind, content) for name, kind, content in scalars]
    keys += [kv("general.alignment", U32, 64), kv_array("bools", BOOL, [True, False]), kv_array("none", U64, [])]
    header = read(tmp_path, File(keys=keys, tensors=[tensor("t", [3], 0, 0)], data=bytes(12), alignment=64).build())
    assert [header.metadata[name] for name, _, _ in scalars] == [content for _, _, content in scalars]
    assert header.metadata["bools"] == [True, False] and header.metadata["none"] == []
    assert header.tensors["t"].offset % 64 == 0


@pytest.mark.long
def test_same_as_the_gguf_package(demo_gguf: Path) -> None:
    import gguf

    header, oracle = read_header(demo_gguf), gguf.GGUFReader(demo_gguf)
    fields = {key: field.contents() for key, field in oracle.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == fields
    assert [(t.name, list(t.shape)[::-1], t.type, t.offset, t.nbytes) for t in header.tensors.values()] == [
        (t.name, t.shape.tolist(), int(t.tensor_type), t.data_offset, t.n_bytes) for t in oracle.tensors
    ]
    known = {int(t): (t.name, *size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    assert all(known[number] == tuple(form) for number, form in GGML_TYPES.items())


def test_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    tokens: list[object] = [f"token{i}" for i in range(150_000)]
    keys = [
        kv_array("tokenizer.ggml.tokens", STRING, tokens),
        kv_array("tokenizer.ggml.token_type", I32, [1] * 150_000),
        kv_array("tokenizer.ggml.scores", F32, [0.5] * 150_000),
        kv_array("tokenizer.ggml.merges", STRING, [f"a b{i}" for i in range(150_000)]),
    ]
    content = File(keys=keys).build()
    header = read(tmp_path, content)
    assert header.metadata["tokenizer.ggml.tokens"] == tokens


def replace_tensor(index: int, entry: bytes) -> Callable[[File], None]:
    return lambda file: file.tensors.__setitem__(index, entry)


def add_key(entry: bytes) -> Callable[[File], None]:
    return lambda file: file.keys.append(entry)


def put(name: str, content: object) -> Callable[[File], None]:
    return lambda file: setattr(file, name, content)


def with_alignment(keyed: int, real: int) -> Callable[[File], None]:
    """general.alignment says one thing, the tensors are laid out for another."""

    def change(file: File) -> None:
        file.keys.append(kv("general.alignment", U32, keyed))
        file.alignment = real

    return change


def padded_for(real: int, keyed: int) -> Callable[[File], None]:
    """Every tensor is a multiple of the real alignment, so only the end of the data shows that the start is wrong."""

    def change(file: File) -> None:
        file.tensors = [tensor("a", [64], 0, 0), tensor("b", [64], 0, 256)]
        file.data, file.alignment = bytes(512), real
        file.keys.append(kv("general.alignment", U32, keyed))
        while len(file.header()) % real in (0, *range(real - keyed + 1, real)):
            file.keys.append(kv(f"k{len(file.keys)}", U8, 0))

    return change


def two_huge(file: File) -> None:
    rows = HUGE // 4
    file.tensors = [tensor("a", [rows], 0, 0), tensor("b", [rows], 0, HUGE)]


WRONG: dict[str, tuple[Callable[[File], None], str]] = {
    "bad magic": (put("magic", b"GGML"), "not a GGUF file"),
    "version 0": (put("version", 0), "version 0"),
    "version 1": (put("version", 1), "version 1"),
    "future version": (put("version", 4), "version 4"),
    "big endian": (put("version", 3 << 24), "big-endian"),
    "num_tensors -1": (put("num_tensors", -1), "do not fit"),
    "num_tensors too many": (put("num_tensors", 2**40), "do not fit"),
    "num_keys -1": (put("num_keys", -1), "do not fit"),
    "num_keys one more": (put("num_keys", 6), "tensor 0: name is"),
    "key size": (add_key(struct.pack("<Q", NEGATIVE) + b"x" * 40), "key is 18446744073709551615 bytes"),
    "key too long": (add_key(kv("k" * 65536, U8, 1)), "65536 bytes"),
    "key empty": (add_key(kv("", U8, 1)), "is empty"),
    "key not UTF-8": (add_key(kv(b"\xff", U8, 1)), "UTF-8"),
    "key type": (add_key(string("k") + struct.pack("<I", 13) + bytes(8)), "'k': has unknown type 13"),
    "key twice": (add_key(kv("llama.block_count", U32, 2)), "'llama.block_count': appears twice"),
    "bool 2": (add_key(string("k") + struct.pack("<IB", BOOL, 2)), "'k': boolean"),
    "value not UTF-8": (add_key(kv("k", STRING, b"\xc3")), "'k': value is not valid UTF-8"),
    "value size": (add_key(string("k") + struct.pack("<IQ", STRING, 2**63)), "'k'"),
    "value too long": (add_key(kv("k", STRING, "x" * ((16 << 20) + 1))), "'k': value is 16777217 bytes"),
    "element too long": (add_key(kv_array("k", STRING, ["x" * ((1 << 20) + 1)])), "'k': element 0 is 1048577 bytes"),
    "alignment 0": (with_alignment(0, 32), "'general.alignment': 0 is not a power of two"),
    "alignment 24": (with_alignment(24, 32), "power of two"),
    "alignment type": (add_key(kv("general.alignment", U64, 32)), "'general.alignment': has type"),
    "array nested": (add_key(string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(40)), "nested"),
    "array type": (add_key(string("k") + struct.pack("<IIQ", ARRAY, 99, 1) + bytes(40)), "unknown"),
    "array -1": (add_key(kv_array("k", U8, [], NEGATIVE)), "'k': array of"),
    "array of strings -1": (add_key(kv_array("k", STRING, [], NEGATIVE)), "'k': array of"),
    "array too long": (add_key(kv_array("k", F32, [1.0], 100_000)), "'k': array of 100000 numbers needs"),
    "array beyond the cap": (add_key(kv_array("k", U8, [1], 1 << 23)), "may hold"),
    "array of too many strings": (add_key(kv_array("k", STRING, ["x"], 10)), "'k': "),
    "array string size": (add_key(kv_array("k", STRING, [], 1) + struct.pack("<Q", 2**62)), "'k': element 0"),
    "array string not UTF-8": (add_key(kv_array("k", STRING, ["x", b"\xe9"])), "'k': element 1"),
    "array of bools": (add_key(string("k") + struct.pack("<IIQ", ARRAY, BOOL, 2) + b"\x01\x02"), "'k': boolean"),
    "name size": (replace_tensor(2, struct.pack("<Q", NEGATIVE) + bytes(60)), "tensor 2: name is"),
    "name too long": (replace_tensor(2, tensor("n" * 64, [5], 0, 1152)), "64 bytes"),
    "name empty": (replace_tensor(2, tensor("", [5], 0, 1152)), "name is empty"),
    "name twice": (replace_tensor(2, tensor("token_embd.weight", [5], 0, 1152)), "appears twice"),
    "dims 5": (replace_tensor(2, tensor("norm.weight", [1] * 5, 0, 1152)), "5 dimensions"),
    "dims -1": (replace_tensor(2, tensor("norm.weight", [5], 0, 1152, num_dims=2**32 - 1)), "has 4294967295"),
    "dim -1": (replace_tensor(2, tensor("norm.weight", [NEGATIVE], 0, 1152)), "shape"),
    "dim 0": (replace_tensor(2, tensor("norm.weight", [5, 0], 0, 1152)), "shape [5, 0]"),
    "shape wraps": (replace_tensor(2, tensor("norm.weight", [2**32, 2**32], 0, 1152)), "shape"),
    "shape too big": (replace_tensor(2, tensor("norm.weight", [2**31, 2**31, 2], 0, 1152)), "shape"),
    "bytes too many": (replace_tensor(2, tensor("norm.weight", [2**61], 0, 1152)), "past the end"),
    "row not of blocks": (replace_tensor(1, tensor("blk.0.attn_q.weight", [48, 3], 3, 1024)), "multiple of Q4_1's"),
    "type unknown": (replace_tensor(2, tensor("norm.weight", [5], 4, 1152)), "unknown type 4"),
    "type -1": (replace_tensor(2, tensor("norm.weight", [5], 2**32 - 1, 1152)), "unknown type"),
    "offset -1": (replace_tensor(2, tensor("norm.weight", [5], 0, NEGATIVE)), "'norm.weight': offset"),
    "offset not aligned": (replace_tensor(2, tensor("norm.weight", [5], 0, 1156)), "multiple of the alignment"),
    "overlap": (replace_tensor(1, tensor("blk.0.attn_q.weight", [64, 3], 3, 992)), "overlaps"),
    "hole": (replace_tensor(2, tensor("norm.weight", [5], 0, 1184)), "hole"),
    "wrong order": (lambda file: file.tensors.reverse(), "hole"),
    "aligned less than said": (with_alignment(256, 32), "past the end"),
    "offsets aligned less than said": (with_alignment(256, 256), "alignment 256"),
    "aligned more than said, unseen in the offsets": (padded_for(32, 8), "belong to no tensor"),
    "bytes left over": (put("data", bytes(1152 + 20 + 60)), "belong to no tensor"),
    "aligned more than said": (with_alignment(8, 32), "hole"),
    "data missing": (put("data", b""), "'token_embd.weight': its 1024 bytes"),
    "data one byte short": (put("data", bytes(1152 + 19)), "'norm.weight': its 20 bytes"),
    "memory size overflow": (two_huge, "past the end"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(ModelFileError) as error:
        read(tmp_path, changed(change))
    assert error.value.message.startswith("m.gguf: ") and message in error.value.message


def check_or_refuse(path: Path, content: bytes) -> None:
    """A damaged file is refused with the typed error, or the damage is in a value that may be so."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except ModelFileError as error:
        assert error.message.startswith(path.name + ": ") and len(error.message) < 1000
        return
    end = 0
    for info in header.tensors.values():
        assert info.offset >= end and info.offset % header.alignment == 0
        end = info.offset + info.nbytes
    assert end <= len(content)


def test_every_byte_of_the_header_changed(tmp_path: Path) -> None:
    good, path = File().build(), tmp_path / "m.gguf"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for position in range(len(File().header())):
        for byte in {0, 0x80, 0xFF, good[position] ^ 1} - {good[position]}:
            check_or_refuse(path, good[:position] + bytes([byte]) + good[position + 1 :])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 << 10  # KiB


def test_truncated_anywhere(tmp_path: Path) -> None:
    good, path = File().build(), tmp_path / "m.gguf"
    for length in [*range(len(File().header())), *range(len(File().header()), len(good), 16)]:
        path.write_bytes(good[:length])
        with pytest.raises(ModelFileError):
            read_header(path)


DAMAGE = """
import random, resource, sys, time
from pathlib import Path
from octavo.errors import ModelFileError
from octavo.modelfiles.gguf import read_header

path = Path(sys.argv[1])
with path.open("rb") as file:
    good = file.read(1_700_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
random.seed(0)
slowest = refused = 0
with path.open("r+b") as file:
    for i in range(250):
        position = random.randrange(2000 if i % 2 else len(good))
        file.seek(position)
        file.write(bytes([random.randrange(256)]))
        file.flush()
        started = time.process_time()
        try:
            read_header(path)
        except ModelFileError:
            refused += 1
        slowest = max(slowest, time.process_time() - started)
        file.seek(position)
        file.write(good[position : position + 1])
        file.flush()
print(refused, slowest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.long
def test_demo_file_damaged_takes_neither_time_nor_memory(demo_gguf: Path, tmp_path: Path) -> None:
    """With 98 MB behind it a wrong count or length finds bytes to read. In a process of its own, for its memory."""
    path = tmp_path / "m.gguf"
    shutil.copyfile(demo_gguf, path)
    command = [sys.executable, "-c", DAMAGE, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    refused, slowest, mebibytes = (float(word) for word in printed.split())
    assert refused > 100 and slowest < 20 and mebibytes < 64


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_random_damage(tmp_path: Path, damage: list[tuple[int, bytes]]) -> None:
    content = bytearray(File().build())
    for position, piece in damage:
        start = position % len(content)
        content[start : start + len(piece)] = piece
    check_or_refuse(tmp_path / "m.gguf", bytes(content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_header(tmp_path)
    with pytest.raises(ModelFileError, match="too short"):
        read(tmp_path, b"")


@pytest.mark.parametrize("step", [1, 37])
def test_the_beginning_of_a_file(tmp_path: Path, step: int) -> None:
    """While the header is not all there it says so, and nothing else; then it is the whole file's."""
    data, path = File().build(), tmp_path / "m.gguf"
    path.write_bytes(data)
    whole = read_header(path)
    end = len(File().header())
    for have in range(1, len(data), step):
        path.write_bytes(data[:have])
        if have < end:
            with pytest.raises(IncompleteError):
                read_beginning(path, len(data), "m.gguf")
        else:
            assert read_beginning(path, len(data), "m.gguf") == whole
    path.write_bytes(b"GGML" + data[4:30])
    with pytest.raises(ModelFileError, match=r"other\.gguf: .*not a GGUF file"):
        read_beginning(path, len(data), "other.gguf")
