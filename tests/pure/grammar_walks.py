"""Grammars over a byte tokenizer, and random walks through their masks. Shared by the tests of octavo/grammar."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

EOS, CLOSE_THINK = 256, 257
PIECES = [
    '",',
    '"}',
    '":',
    "}}",
    "]}",
    " the",
    "true",
    "null",
    "é",
    "\u4e2d",
    "\U0001f98a",
    "\u0663",
    "2024-",
    "http://",
]
"""Tokens of several bytes."""
SIZE = 258 + len(PIECES)


_BYTES = [*(bytes([i]) for i in range(256)), b"<|end|>", b"</think>", *(piece.encode() for piece in PIECES)]


class _Tokens:
    eos_token_id = EOS
    bos_token_id = None
    tokens = _BYTES
    special_token_ids = [EOS, CLOSE_THINK]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@functools.cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Tokens()), n_vocab=SIZE)


def matcher(grammar: str) -> LLMatcher:
    return LLMatcher(tokenizer(), grammar, log_level=0)


def accepts(grammar: str, text: str | list[int]) -> bool:
    """Whether the grammar may end exactly after this text (or these tokens)."""
    found = matcher(grammar)
    assert not found.is_error(), found.get_error()
    ids = list(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else text
    return found.try_consume_tokens(ids) == len(ids) and found.is_accepting()


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and 1 < len(value) <= 3:
        yield from (dict(items) for items in permutations(value.items()))
    else:
        yield value
        if isinstance(value, dict):
            yield dict(sorted(value.items()))
            yield dict(reversed(value.items()))


def texts(value: Any) -> Iterator[str]:
    """A value as JSON, written in several ways."""
    for ordered in _orders(value):
        yield json.dumps(ordered, ensure_ascii=False)
        yield json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
        yield json.dumps(ordered, ensure_ascii=False, indent=2)
        yield json.dumps(ordered)


def walk(grammar: str, rng: random.Random, steps: int = 250) -> str | None:
    """The text of a random walk through the masks; None when it came to no end. After `steps` what closes is chosen."""
    found = matcher(grammar)
    out: list[int] = []
    closing = [ord(c) for c in '"}]'] + [ord(c) for c in "0123456789,:tfn\\"]
    while True:
        mask = found.compute_bitmask()
        assert not found.is_error(), found.get_error()
        allowed = [i for i in range(SIZE) if mask[i >> 3] >> (i & 7) & 1]
        assert allowed, f"nothing is allowed after {bytes(out)!r}"
        if EOS in allowed and (len(allowed) == 1 or len(out) > steps or rng.random() < 0.3):
            return b"".join(_BYTES[i] for i in out).decode()
        choices = [i for i in allowed if i != EOS]
        ends = [i for i in closing if i in choices]
        if len(out) > 8 * steps:
            return None
        token = ends[0] if ends and len(out) > steps else rng.choice(ends) if ends and rng.random() < 0.3 else 0
        out.append(token or rng.choice(choices))
        assert found.consume_token(out[-1]), found.get_error()
