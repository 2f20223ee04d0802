"""Text to token ids and back, for every file format. Called by the server, the offline engine and the client's streams.

Torch- and transformers-free; `tokenizers` is imported when a tokenizer is loaded, not with this module. Instances are
immutable and may be used from several threads. Special tokens in text are text unless the caller asks for them: the
backend never matches a special token itself. Where a special token is meant, an unguessable separator stands in its
place, which splits the text exactly as the token would, and its id is put back afterwards.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

from octavo.errors import ContextLengthExceeded, EngineError, ModelFileError, RequestError
from octavo.modelfiles.files import ModelFiles
from octavo.text.parts import AddedToken, TokenizerParts

Segment = str | int
"""Text, or the id of a special token."""

WHOLE_CHARS = 1 << 18
"""Longer texts are encoded in chunks: memory and time stay linear, and a limit is noticed early."""
CHUNK_CHARS = 1 << 16

# Every pre-tokenizer splits between a letter and a following space + letter, so that a cut there changes nothing.
_SAFE_CUT = re.compile(r"[^\W\d_](?= [^\W\d_])")


class Tokenizer:
    """The tokenizer of one model. `vocab_size` counts the tokenizer's ids (the model may have rows more)."""

    def __init__(self, parts: TokenizerParts) -> None:
        from tokenizers import AddedToken as BackendToken

        self.bos_id = parts.bos_id
        self.eos_ids = parts.eos_ids
        self.vocab_size = parts.vocab_size
        self.special_ids = frozenset(token.id for token in parts.added if token.special)
        self.special_names = dict(parts.names)
        self.strips_space = parts.strips_space
        self._piece = parts.piece
        self._pieces: dict[int, bytes] = {}
        self._whole_texts: dict[tuple[bool, frozenset[int]], WholeTexts] = {}
        self._backend = parts.backend
        self._backend.encode_special_tokens = True
        self._separator = f"\ue000{secrets.token_hex(16)}\ue001"
        self._backend.add_tokens([BackendToken(self._separator, normalized=False, special=False)])
        self._separator_id: int = self._backend.token_to_id(self._separator)
        self._matcher = SpecialMatcher(parts.added)
        self._anchor = self._encode("\n")
        self._anchored = parts.fresh_start
        self._prefix_ids, self._suffix_ids = list(parts.prefix_ids), list(parts.suffix_ids)

    @classmethod
    def load(cls, files: ModelFiles) -> Tokenizer:
        """Read tokenizer.json beside the weights, or the GGUF's own metadata. Raises ModelFileError."""
        from octavo.text import gguf_tokenizer, json_tokenizer

        file = files.path.name if files.is_gguf else "tokenizer.json"
        try:
            return cls((gguf_tokenizer if files.is_gguf else json_tokenizer).read_parts(files.path))
        except BaseException as error:
            if not is_library_failure(error):
                raise
            raise ModelFileError(file, f"not a usable tokenizer: {error}") from None

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of `text`; with `add_special_tokens` also those the model wants around a prompt (BOS).

        `parse_special`: the strings of special tokens become those tokens; otherwise they are ordinary text.
        `max_tokens`: raise ContextLengthExceeded as soon as there are more. Raises RequestError on lone surrogates.
        """
        segments: Iterable[Segment] = self._matcher.split(text) if parse_special else (text,)
        return self.encode_segments(segments, add_special_tokens=add_special_tokens, max_tokens=max_tokens)

    @cached_property
    def most_characters(self) -> int:
        """Of the longest token."""
        return max(map(len, self._backend.get_vocab()), default=1)

    def encode_segments(
        self, segments: Iterable[Segment], *, add_special_tokens: bool = False, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of texts in which the special tokens are given as ids; the texts themselves hold none."""
        special: list[int] = []
        texts: list[str] = []
        for segment in segments:
            if isinstance(segment, int):
                special.append(segment)
                texts.append(self._separator)
                _check_length(len(special), max_tokens)
            else:
                texts.append(segment)
        text = "".join(texts)
        check_unicode(text)
        before, after = (self._prefix_ids, self._suffix_ids) if add_special_tokens else ([], [])
        ids = [*before]
        waiting = iter(special)
        for chunk in self._encode_chunks(text):
            ids += [next(waiting) if i == self._separator_id else i for i in chunk] if special else chunk
            _check_length(len(ids) + len(after), max_tokens)
        return [*ids, *after]

    @property
    def special_texts(self) -> list[str]:
        """The strings of the special tokens."""
        return self._matcher.special_texts

    def split_special(self, text: str, is_text: Callable[[int, int], bool] | None = None) -> Iterator[Segment]:
        """Cut text at the special tokens in it: texts and ids, in order. `is_text(start, end)` spares an occurrence."""
        return self._matcher.split(text, is_text)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, continuation: bool = False) -> str:
        """Text of the ids; invalid UTF-8 shows as U+FFFD. Ids without a token give nothing.

        `continuation`: the ids follow a prompt, so that a leading space is kept.
        """
        text = b"".join(self.visible_bytes(i, skip_special_tokens) for i in ids).decode(errors="replace")
        return text[1:] if self.strips_space and not continuation and text.startswith(" ") else text

    def visible_bytes(self, token_id: int, skip_special_tokens: bool) -> bytes:
        """What a token adds to decoded text: nothing for a special token that is to be skipped."""
        return b"" if skip_special_tokens and token_id in self.special_ids else self.token_bytes(token_id)

    def whole_texts(self, skip_special_tokens: bool, kept: frozenset[int] = frozenset()) -> WholeTexts:
        """What each token adds to a text that ends on a whole code point. `kept`: special tokens that are not skipped;
        there are as many such sets as a model has families of markers, so they are remembered."""
        key = (skip_special_tokens, kept)
        found = self._whole_texts.get(key)
        if found is None:
            hidden = self.special_ids - kept if skip_special_tokens else frozenset()
            found = self._whole_texts[key] = WholeTexts(self, hidden)
        return found

    def special_id(self, text: str) -> int | None:
        """The special token with this text."""
        return self._matcher.special_id(text)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, special tokens by name; empty for ids without a token."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._piece(token_id) if 0 <= token_id < self.vocab_size else b""
            self._pieces[token_id] = piece
        return piece

    def token_text(self, token_id: int) -> str:
        """The token as text by itself; part of a code point shows as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def spelling(self, token_id: int) -> str:
        """The token as the vocabulary has it: `Ġthe`, `▁the`, `<0x0A>`."""
        return str(self._backend.id_to_token(token_id) or "")

    def _encode_chunks(self, text: str) -> Iterator[list[int]]:
        if len(text) <= WHOLE_CHARS:
            yield self._encode(text)
            return
        for start, end in pairwise(self._cuts(text)):
            chunk = text[start:end]
            # A line break in front keeps the backend from adding the space of a new text; it never joins a letter.
            if start and (self._anchored or not chunk[0].isspace()):
                ids = self._encode("\n" + chunk)
                if ids[: len(self._anchor)] == self._anchor:
                    yield ids[len(self._anchor) :]
                    continue
            yield self._encode(chunk)

    def _encode(self, text: str) -> list[int]:
        """Raises EngineError where the library cannot do it."""
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not is_library_failure(error):
                raise
            raise EngineError(f"the model's tokenizer fails on this text: {str(error)[:200]}") from None
        return ids

    def _cuts(self, text: str) -> Iterator[int]:
        """Where chunks start and end: between two words, or, in a run of CHUNK_CHARS without any, right there."""
        yield 0
        position = 0
        while len(text) - position > CHUNK_CHARS:
            end = position + CHUNK_CHARS
            cut = max((m.end() for m in _SAFE_CUT.finditer(text, end - 512, end)), default=0)
            cut = cut or max((m.end() for m in _SAFE_CUT.finditer(text, position + 1, end)), default=0)
            if not cut:
                cut = end
                inside = text.find(self._separator, end - len(self._separator) + 1, end + len(self._separator) - 1)
                if inside != -1:
                    cut = inside
            yield cut
            position = cut
        yield len(text)


class WholeTexts(dict[int, str | None]):
    """Token id → its visible text, None where that is not made of whole code points. Fills itself when asked."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden

    def bytes(self, token_id: int) -> bytes:
        """The same as bytes, of any token."""
        return b"" if token_id in self._hidden else self._tokenizer.token_bytes(token_id)

    def __missing__(self, token_id: int) -> str | None:
        text: str | None
        try:
            text = self.bytes(token_id).decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


class SpecialMatcher:
    """Finds special tokens in text as the backend would: leftmost, longest, with the blanks they swallow."""

    def __init__(self, added: Sequence[AddedToken]) -> None:
        # Added tokens that are not special take part, since a longer one hides a special token inside it.
        self._tokens = {token.content: token for token in added if token.content}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @property
    def special_texts(self) -> list[str]:
        return [content for content, token in self._tokens.items() if token.special]

    def special_id(self, text: str) -> int | None:
        token = self._tokens.get(text)
        return token.id if token is not None and token.special else None

    def find(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
        """(start, end, token) of every special token in the text."""
        for match in self._pattern.finditer(text):
            token = self._tokens[match.group()]
            if token.special and not (token.single_word and _touches_word(text, match.start(), match.end())):
                yield match.start(), match.end(), token

    def split(self, text: str, is_text: Callable[[int, int], bool] | None = None) -> Iterator[Segment]:
        """The text between special tokens, and their ids."""
        position = 0
        for start, end, token in self.find(text):
            if start < position or (is_text is not None and is_text(start, end)):
                continue
            before = text[position:start]
            before = before.rstrip() if token.lstrip else before
            if before:
                yield before
            yield token.id
            position = end
            if token.rstrip:
                position = len(text) - len(text[end:].lstrip())
        if position < len(text):
            yield text[position:]


def is_library_failure(error: BaseException) -> bool:
    """An error of the tokenizers library: it raises bare Exception, and panics, which are no Exception at all."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _check_length(count: int, max_tokens: int | None) -> None:
    if max_tokens is not None and count > max_tokens:
        raise ContextLengthExceeded(
            f"the prompt has at least {count} tokens, but at most {max_tokens} fit the context",
            param="prompt",
            facts={"tokens": count, "limit": max_tokens},
        )


def check_unicode(text: str) -> None:
    """Raise RequestError when the text holds half of a surrogate pair, which no encoding can carry."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}",
            param="prompt",
            code="invalid_unicode",
        ) from None


def _touches_word(text: str, start: int, end: int) -> bool:
    def is_word(char: str) -> bool:
        return char.isalnum() or char == "_"

    return (start > 0 and is_word(text[start - 1])) or (end < len(text) and is_word(text[end]))
