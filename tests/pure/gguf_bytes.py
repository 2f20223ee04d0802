"""Builds GGUF files byte by byte, right or wrong in one chosen place. Used by the header and facts tests."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: object) -> bytes:
    return string(content) if kind == STRING else struct.pack("<" + _CODES[kind], content)  # type: ignore[arg-type]


def kv(key: str | bytes, kind: int, content: object) -> bytes:
    return string(key) + struct.pack("<I", kind) + value(kind, content)


def kv_array(key: str, kind: int, items: list[object], count: int | None = None) -> bytes:
    head = string(key) + struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count)
    return head + b"".join(value(kind, item) for item in items)


def tensor(name: str | bytes, dims: list[int], kind: int, offset: int, num_dims: int | None = None) -> bytes:
    """`dims` in GGUF's order, the row length first."""
    head = string(name) + struct.pack("<I", len(dims) if num_dims is None else num_dims)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


@dataclass
class File:
    """A small good file; tests change one part of it."""

    keys: list[bytes] = field(
        default_factory=lambda: [
            kv("general.architecture", STRING, "llama"),
            kv("llama.block_count", U32, 2),
            kv("general.flag", BOOL, True),
            kv_array("general.numbers", F32, [1.0, -2.5]),
            kv_array("tokenizer.ggml.tokens", STRING, ["a", "bc", "é", ""]),
        ]
    )
    tensors: list[bytes] = field(
        default_factory=lambda: [
            tensor("token_embd.weight", [64, 4], 0, 0),
            tensor("blk.0.attn_q.weight", [64, 3], 3, 1024),
            tensor("norm.weight", [5], 0, 1152),
        ]
    )
    data: bytes = bytes(1152 + 20)
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    alignment: int = 32

    def header(self) -> bytes:
        counts = (
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(self.keys) if self.num_keys is None else self.num_keys,
        )
        start = self.magic + struct.pack("<I", self.version) + b"".join(struct.pack("<Q", c % 2**64) for c in counts)
        return start + b"".join(self.keys) + b"".join(self.tensors)

    def build(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data


def llama(num_tokens: int = 4, num_bytes: int = 0, architecture: str = "llama") -> bytes:
    """A file whose header says enough of a Llama, and `num_bytes` of another tensor behind its table."""
    sizes = {"context_length": 512, "embedding_length": 64, "block_count": 2, "feed_forward_length": 128}
    keys = [
        kv("general.architecture", STRING, architecture),
        *(kv(f"{architecture}.{name}", U32, size) for name, size in sizes.items()),
        kv(f"{architecture}.attention.head_count", U32, 4),
        kv(f"{architecture}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        kv_array("tokenizer.ggml.tokens", STRING, [f"token {i}" for i in range(num_tokens)]),
    ]
    table = num_tokens * 64 * 4
    tensors = [tensor("token_embd.weight", [64, num_tokens], 0, 0)]
    if num_bytes:
        tensors.append(tensor("output_norm.weight", [num_bytes // 4], 0, table))
    return File(keys=keys, tensors=tensors, data=bytes(table + num_bytes // 4 * 4)).build()
