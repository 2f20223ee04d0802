"""Follows a grammar token by token: which tokens may come next, by llguidance. Used by engine/constraints.py.

Owns the vocabulary as llguidance wants it, made once per engine, and the state of each request. Invariants: the text of
a grammar never matches a special token by its bytes; a mask that is given allows at least one token; tokens that end a
request are allowed exactly where the grammar may end. llguidance is imported when a vocabulary is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from octavo.grammar.compiled import CACHED_BYTES, Compiled, CompiledGrammars, TooExpensive
from octavo.grammar.limits import EXPENSIVE, parser_limits
from octavo.modelfiles.files import ModelFiles
from octavo.text.tokenizer import Tokenizer

MAX_FORCED_BYTES = 512
"""Of a text that nothing else may stand for, so many are made into tokens; only the first token counts."""
_LIMITS = re.compile(
    r"parser error: Too many|lexer error: too many|Current row has \d+ items|fuel exhausted|TooComplex"
)
"""How llguidance says that a grammar is over its limits; to it some are internal errors."""
_TOO_COMPLEX = "the grammar is too complex to be followed any further; make it smaller or less ambiguous"
INVALID = "invalid_grammar"


class GrammarError(Exception):
    """A grammar that cannot be compiled, or not followed any further. `is_users`: because of what it is; `code` says
    how."""

    def __init__(self, message: str, *, is_users: bool, code: str = INVALID) -> None:
        super().__init__(message)
        self.is_users = is_users
        self.code = code


class Vocabulary:
    """The tokens of a model with `size` logits; the tokenizer may know fewer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, size: int, *, cached_bytes: int = CACHED_BYTES) -> None:
        """`cached_bytes`: of compiled grammars that are kept."""
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size = size
        # An end of its own, behind the model's tokens: which of those may end a request differs from one to the next.
        self._limits = parser_limits()
        self._tokenizer: Any = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, size)), n_vocab=size + 1, eos_token=size)
        self.grammars = CompiledGrammars(cached_bytes)

    @classmethod
    def load(cls, files: ModelFiles, size: int, *, cached_bytes: int = CACHED_BYTES) -> Vocabulary:
        """Raises ModelFileError."""
        return cls(Tokenizer.load(files), size, cached_bytes=cached_bytes)

    def matcher(self, grammar: str, stop_ids: Iterable[int] = ()) -> Matcher:
        """At the grammar's start; llguidance frees the interpreter lock while it compiles. Raises GrammarError."""
        compiled = self.grammars.get(grammar)
        if compiled is None:
            try:
                compiled = self.grammars.compile(grammar, lambda: self._compiled(grammar))
            except TooExpensive as error:
                raise GrammarError(str(error), is_users=True, code=EXPENSIVE) from None
        return Matcher(self.grammars, compiled, self.size, frozenset(stop_ids))

    def _compiled(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise GrammarError(matcher.get_error(), is_users=True)
        return matcher


class Matcher:
    """A place in a grammar. Not thread-safe: one call at a time. `stop_ids`: tokens that end the request."""

    def __init__(self, grammars: CompiledGrammars, compiled: Compiled, size: int, stop_ids: frozenset[int]) -> None:
        matcher = compiled.matcher.deep_copy()
        self._grammars = grammars
        self._compiled = compiled
        self._matcher = matcher
        self._size = size
        self._nbytes = -(-size // 32) * 4
        self._stop_ids = stop_ids
        self.is_finished = bool(matcher.is_stopped())
        """Nothing but the end can follow."""

    def consume(self, token: int) -> None:
        """The token was sampled. Raises GrammarError when the grammar does not allow it."""
        if token in self._stop_ids and not self._matcher.validate_tokens([token]) and self._matcher.is_accepting():
            self.is_finished = True
            return
        if not self._matcher.consume_token(token):
            raise self._error(f"token {token} is not allowed by the grammar")
        self.is_finished = bool(self._matcher.is_stopped())

    def mask(self) -> bytes | None:
        """The tokens that may come next, as wire/plan.py's Masks have them: what the grammar allows, and all stop ids
        where it may end. None: nothing but the end can follow, and no stop id is there to say so. Raises GrammarError.
        """
        try:
            with self._grammars.watched(self._compiled):
                found: bytes = self._matcher.compute_bitmask()
        except TooExpensive as error:
            raise GrammarError(str(error), is_users=True, code=EXPENSIVE) from None
        if self._matcher.is_error():
            raise self._error("the next tokens of the grammar cannot be found")
        mask = bytearray(found[: self._nbytes])
        if found[self._size >> 3] >> (self._size & 7) & 1:
            if self._size >> 3 < len(mask):
                mask[self._size >> 3] &= ~(1 << (self._size & 7)) & 255
            for token in self._stop_ids:
                mask[token >> 3] |= 1 << (token & 7)
            if not any(mask):
                self.is_finished = True
                return None
        elif not any(mask):
            raise GrammarError("the grammar allows no token of this model here", is_users=True)
        return bytes(mask)

    def _error(self, what: str) -> GrammarError:
        message = self._matcher.get_error()
        if _LIMITS.search(f"{message} {self._matcher.stop_reason()}"):
            return GrammarError(_TOO_COMPLEX, is_users=True, code=EXPENSIVE)
        return GrammarError(f"{what}: {message}", is_users=False)


class _Tokens:
    """What llguidance's TokenizerWrapper asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        known = min(tokenizer.vocab_size, size)
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("\n", add_special_tokens=False)
        self.eos_token_id = size
        self.tokens = [*map(tokenizer.token_bytes, range(known)), *[b""] * (size - known), b"<|end of grammar|>"]
        self.special_token_ids = [*sorted(i for i in tokenizer.special_ids if i < size), size]
        self._ids: dict[bytes, int] = {}
        self._longest = 0

    def __call__(self, data: bytes) -> list[int]:
        """Tokens of a text that stands within another, so that what a grammar forces comes in the model's own tokens.
        They are made of exactly these bytes."""
        if len(data) > MAX_FORCED_BYTES:  # it may have millions, and asks at every token
            end = MAX_FORCED_BYTES
            while data[end] & 0xC0 == 0x80:  # not inside a character
                end -= 1
            data = data[:end]
        text = data.decode(errors="replace")
        # After a line break nothing is added that only a new text begins with.
        ids = self._tokenizer.encode("\n" + text, add_special_tokens=False)
        if ids[: len(self._anchor)] == self._anchor:
            ids = ids[len(self._anchor) :]
            if b"".join(self.tokens[i] for i in ids) == data:
                return ids
        return self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token first."""
        if not self._ids:
            special = set(self.special_token_ids)
            self._ids = {piece: i for i, piece in enumerate(self.tokens) if piece and i not in special}
            self._longest = max(map(len, self._ids), default=1)
        found: list[int] = []
        at = 0
        while at < len(data):
            lengths = range(min(self._longest, len(data) - at), 0, -1)
            length = next((n for n in lengths if data[at : at + n] in self._ids), None)
            if length is None:
                return found
            found.append(self._ids[data[at : at + length]])
            at += length
        return found
