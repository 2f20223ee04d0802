"""Token ids to text, one token at a time. Owns the bytes of an unfinished code point; used by client/stream.py.

Invariant: the pieces given out, joined, equal `Tokenizer.decode` of all ids; no piece ends inside a code point.
"""

from __future__ import annotations

import codecs

from octavo.text.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode`: constant work per token, however long the text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        continuation: bool = False,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        """`kept`: special tokens that are shown even so."""
        self._texts = tokenizer.whole_texts(skip_special_tokens, kept)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = False
        """The decoder holds bytes of an unfinished code point."""
        self._at_start = tokenizer.strips_space and not continuation

    def push(self, token_id: int) -> str:
        """Text that this token completes; empty while a code point is unfinished."""
        if not self._partial:
            whole = self._texts[token_id]
            if whole is not None:
                return self._show(whole) if self._at_start else whole
        text = self._decoder.decode(self._texts.bytes(token_id))
        self._partial = bool(self._decoder.getstate()[0])
        return self._show(text)

    def shows(self, token_id: int) -> bool:
        """Whether the token adds to the text at all."""
        return bool(self._texts.bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a code point that never came complete."""
        return self._show(self._decoder.decode(b"", final=True))

    def _show(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text
