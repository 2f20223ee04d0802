"""What a tokenizer is made of, whichever file it came from: json_tokenizer and gguf_tokenizer build it for Tokenizer.

Invariant: `piece(id)` gives the exact bytes a token stands for, so text is always `b"".join(pieces)` decoded as UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

METASPACE = "\u2581"
"""How SentencePiece spells a space."""


@dataclass(frozen=True)
class AddedToken:
    """A token matched as a whole before the model splits the text. `special`: control, not matched in user text."""

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerParts:
    """`backend`: a tokenizers.Tokenizer without truncation and padding, with its added tokens already in it.

    `names`: the named special tokens that templates see (bos_token, eos_token, …) as text.
    `prefix_ids`, `suffix_ids`: what the model wants around a prompt.
    `strips_space`: decoding a whole text drops one leading space, which encoding put there (SentencePiece).
    `fresh_start`: the backend treats the start of a text differently from its middle.
    """

    backend: Any
    piece: Callable[[int], bytes]
    added: tuple[AddedToken, ...]
    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    strips_space: bool = False
    fresh_start: bool = False
    names: dict[str, str] = field(default_factory=dict)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable spelling of the 256 bytes: character → byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    spelling.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return spelling


_ALPHABET = byte_alphabet()


def byte_level_piece(token: str) -> bytes:
    """Bytes of a byte-level BPE token. One that is not written in the byte alphabet stands for its own text."""
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:
        return token.encode()


def sentencepiece_piece(token: str) -> bytes:
    """Bytes of a SentencePiece token: `<0xHH>` is one byte, U+2581 is a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(METASPACE, " ").encode()
