"""Log-probabilities in the two shapes of the API, from token ids. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from octavo.server.faces.openai.protocol.shared import (
    ChatLogprobs,
    CompletionLogprobs,
    LogprobEntry,
    PromptLogprob,
    PromptLogprobs,
    TopLogprobEntry,
)
from octavo.text.tokenizer import Tokenizer
from octavo.types import TokenLogprobs

L = TypeVar("L", ChatLogprobs, CompletionLogprobs)

_encode = msgspec.json.Encoder().encode
PIECE = 256
FLOOR = -9999.0
"""Stands for -inf, which JSON cannot say."""


class ChatLogprobsBuilder:
    """Of one choice, chunk by chunk: one entry per token of the content. A code point of several tokens is the text of
    the last of them, so that the joined tokens are the content; `bytes` say what each brought."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        """`as_ids`: tokens are given as `token_id:ID`, which no other token can be mistaken for."""
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def build(self, entries: Sequence[TokenLogprobs], final: bool) -> ChatLogprobs:
        """`final`: no more will come, an unfinished code point ends as U+FFFD."""
        content: list[LogprobEntry] = []
        for number, entry in enumerate(entries, 1):
            raw = self._tokenizer.token_bytes(entry.token_id)
            text = self._decoder.decode(raw, final=final and number == len(entries))
            if self._as_ids:
                text = _id_text(entry.token_id)
            top = [self._top(t.token_id, t.logprob) for t in entry.top]
            content.append(LogprobEntry(token=text, logprob=_finite(entry.logprob), bytes=list(raw), top_logprobs=top))
        return ChatLogprobs(content=content)

    def _top(self, token_id: int, logprob: float) -> TopLogprobEntry:
        raw = self._tokenizer.token_bytes(token_id)
        text = _id_text(token_id) if self._as_ids else raw.decode(errors="replace")
        return TopLogprobEntry(token=text, logprob=_finite(logprob), bytes=list(raw))


class CompletionLogprobsBuilder:
    """Of one choice, chunk by chunk: keeps where in the choice's text the next token begins, in characters."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, skip_special_tokens: bool, *, as_ids: bool = False) -> None:
        """`as_ids`: tokens are given as `token_id:ID`, which no other token can be mistaken for."""
        self._text = _id_text if as_ids else tokenizer.token_text
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def build(self, entries: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """Of tokens of the output."""
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._tokenizer.visible_bytes(entry.token_id, self._skip)))
        return self._built([entry.token_id for entry in entries], entries, offsets)

    def echo(self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], shown: str) -> CompletionLogprobs:
        """Of the prompt, which comes first: `ids` [n] with their entries [n], None for the first token; `shown` is its
        text. Tokens that the text lacks (a BOS put before it, the space of SentencePiece) take no room."""
        tokenizer = self._tokenizer
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        offsets: list[int] = []
        at = 0
        for token_id in ids:
            offsets.append(at)
            raw = tokenizer.token_bytes(token_id)
            if token_id in tokenizer.special_ids:
                text = raw.decode(errors="replace")
                at += len(text) if shown.startswith(text, at) else 0
                continue
            text = decoder.decode(raw)
            if at == 0 and text.startswith(" ") and not shown.startswith(" "):
                text = text[1:]
            at = min(at + len(text), len(shown))
        self._offset = len(shown)
        return self._built(ids, entries, offsets)

    def _built(
        self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offsets: list[int]
    ) -> CompletionLogprobs:
        out = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=offsets)
        for token_id, entry in zip(ids, entries, strict=True):
            text = self._text(token_id)
            out.tokens.append(text)
            if entry is None:
                out.token_logprobs.append(None)
                out.top_logprobs.append(None)
                continue
            out.token_logprobs.append(_finite(entry.logprob))
            top: dict[str, float] = {}
            for t in entry.top[: self._num_top]:
                top.setdefault(self._text(t.token_id), _finite(t.logprob))
            top.setdefault(text, _finite(entry.logprob))
            out.top_logprobs.append(top)
        return out


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """vLLM's shape: per prompt token a map from token id to its log-probability; null for the first."""
    found: PromptLogprobs = []
    for entry in entries:
        if entry is None:
            found.append(None)
            continue
        ranks = {t.token_id: rank for rank, t in enumerate(entry.top, 1)}
        pairs = {entry.token_id: entry.logprob, **{t.token_id: t.logprob for t in entry.top}}
        found.append(
            {
                str(token_id): PromptLogprob(
                    logprob=_finite(logprob), rank=ranks.get(token_id), decoded_token=tokenizer.token_text(token_id)
                )
                for token_id, logprob in pairs.items()
            }
        )
    return found


def encoded(values: list[Any]) -> Any:
    """The list as JSON, encoded piece by piece: one call for a long one would keep all threads waiting."""
    parts = [_encode(values[at : at + PIECE])[1:-1] for at in range(0, len(values), PIECE)]
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def lists_encoded(logprobs: L) -> L:
    """The same with its lists as JSON."""
    lists = {name: getattr(logprobs, name) for name in logprobs.__struct_fields__}
    return msgspec.structs.replace(logprobs, **{n: encoded(v) for n, v in lists.items() if isinstance(v, list)})


def _id_text(token_id: int) -> str:
    return f"token_id:{token_id}"


def _finite(value: float) -> float:
    return max(value, FLOOR)
