"""One JSON value, read as it comes and given on at once: the arguments of a call while the model still writes them.

Used by the parsers beside it. Linear in the text, no recursion. Invariants: what was given out is always the beginning
of valid JSON, and with `closing()` it is valid JSON. What models commonly get wrong is put right on the way: line
breaks and unknown escapes inside strings, a comma before a bracket, Python's True, False and None.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import ClassVar

MAX_DEPTH = 128
MAX_WORD = 512
"""Longest number; readers of JSON refuse longer ones."""

_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD_START = frozenset("-0123456789tfnTFN")
_WORD_END = re.compile(r"[\s,:\]})]")
_BLANK = re.compile(r"[ \t\r\n]+")
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class State(Enum):
    VALUE = auto()
    VALUE_OR_CLOSE = auto()
    KEY_OR_CLOSE = auto()
    COLON = auto()
    COMMA_OR_CLOSE = auto()
    STRING = auto()
    WORD = auto()
    DONE = auto()
    FAILED = auto()


class JsonText:
    """`push` what comes until `over`; then `failed` says whether it was no JSON after all."""

    opening: ClassVar[dict[str, tuple[str, str]]] = {"{": ("{", "}"), "[": ("[", "]")}
    """Bracket → how it is given out, and the bracket that closes it."""
    quotes = '"'
    plain = re.compile(r'[^"\\\x00-\x1f]+')
    """What stands in a string as it is."""

    def __init__(self) -> None:
        self.state = State.VALUE
        self.has_begun = False
        """Something was given out."""
        self._closers: list[tuple[str, str]] = []
        """(bracket that ends it here, bracket that is given out) of everything open."""
        self._held: list[str] = []
        """A comma, a key and a colon, given out with the value they lead to."""
        self._out: list[str] = []
        self._quote = '"'
        self._is_key = False
        self._word: list[str] = []
        self._escape = ""
        """An escape sequence that is not complete."""

    @property
    def done(self) -> bool:
        return self.state is State.DONE

    @property
    def failed(self) -> bool:
        return self.state is State.FAILED

    @property
    def over(self) -> bool:
        return self.state in (State.DONE, State.FAILED)

    def push(self, text: str, at: int = 0) -> tuple[str, int]:
        """Reads `text` from `at`. → (JSON that is certain by now, index after the last character that was taken)."""
        end = len(text)
        while at < end and not self.over:
            if self.state is State.STRING:
                at = self._string(text, at)
            elif self.state is State.WORD:
                at = self._in_word(text, at)
            else:
                at = self._structure(text, at)
        out, self._out = "".join(self._out), []
        self.has_begun = self.has_begun or bool(out)
        return out, at

    def closing(self) -> str:
        """What makes valid JSON of all that was given out; "" where that is so already. After it nothing follows."""
        if self.state is State.DONE:
            return ""
        out = ""
        if self.state is State.STRING and not self._is_key:
            out = '"'
        elif self.state is State.WORD and (word := self._checked_word()) is not None:
            out = "".join(self._held) + word
        self.state = State.DONE
        self.has_begun = self.has_begun or bool(out)
        return out + "".join(closer for _, closer in reversed(self._closers))

    # -- between strings and words

    def _structure(self, text: str, at: int) -> int:
        if blank := _BLANK.match(text, at):
            if self._closers:
                (self._held if self._held else self._out).append(blank.group())
            return blank.end()
        char, state = text[at], self.state
        takes_value = state in (State.VALUE, State.VALUE_OR_CLOSE)
        if self._closers and char == self._closers[-1][0] and state in _CLOSABLE:
            self._held.clear()
            self._out.append(self._closers.pop()[1])
            self._value_ended()
        elif state is State.COMMA_OR_CLOSE and char == ",":
            self._held.append(",")
            self.state = State.KEY_OR_CLOSE if self._closers[-1][1] == "}" else State.VALUE_OR_CLOSE
        elif state is State.COLON and char == ":":
            self._held.append(":")
            self.state = State.VALUE
        elif char in self.quotes and (takes_value or state is State.KEY_OR_CLOSE):
            self._open_string(char, is_key=not takes_value)
        elif takes_value and char in self.opening and len(self._closers) < MAX_DEPTH:
            self._release()
            given, closer = self.opening[char]
            self._out.append(given)
            self._closers.append((closer, "}" if given == "{" else "]"))
            self.state = State.KEY_OR_CLOSE if given == "{" else State.VALUE_OR_CLOSE
        elif takes_value and char in _WORD_START:
            self.state = State.WORD
            return at
        else:
            self.state = State.FAILED
            return at
        return at + 1

    def _value_ended(self) -> None:
        self.state = State.COMMA_OR_CLOSE if self._closers else State.DONE

    def _release(self) -> None:
        self._out += self._held
        self._held.clear()

    # -- numbers and names

    def _in_word(self, text: str, at: int) -> int:
        found = _WORD_END.search(text, at)
        room = MAX_WORD + 1 - sum(map(len, self._word))
        end = min(len(text) if found is None else found.start(), at + room)  # however the text is cut
        self._word.append(text[at:end])
        if end == at + room:
            self.state = State.FAILED
        elif found is not None:
            word = self._checked_word()
            if word is None:
                self.state = State.FAILED
                return end
            self._word.clear()
            self._release()
            self._out.append(word)
            self._value_ended()
        return end

    def _checked_word(self) -> str | None:
        word = "".join(self._word)
        return word if _NUMBER.fullmatch(word) else _WORDS.get(word)

    # -- strings

    def _open_string(self, quote: str, is_key: bool) -> None:
        self._is_key, self._quote = is_key, quote
        if not is_key:
            self._release()
        self._put('"')
        self.state = State.STRING

    def _put(self, text: str) -> None:
        (self._held if self._is_key else self._out).append(text)

    def _string(self, text: str, at: int) -> int:
        if self._escape:
            return self._in_escape(text, at)
        if plain := self.plain.match(text, at):
            self._put(plain.group())
            return plain.end()
        char = text[at]
        if char == "\\":
            self._escape = char
        elif char == self._quote:
            self._end_string()
        else:
            self._put(_CONTROL.get(char) or f"\\u{ord(char):04x}")
        return at + 1

    def _end_string(self) -> None:
        self._put('"')
        if self._is_key:
            self.state = State.COLON
        else:
            self._value_ended()

    def _in_escape(self, text: str, at: int) -> int:
        """One more character of an escape sequence. A surrogate waits for its other half; alone it is U+FFFD."""
        char, waits = text[at], len(self._escape) == 6
        escape = self._escape[6:] if len(self._escape) > 6 else "" if waits else self._escape
        if waits and char != "\\":
            self._escape = ""
            self._put("\\ufffd")
            return at
        if escape == "\\" and char in _ESCAPES:
            self._put(("\\ufffd" if len(self._escape) > 6 else "") + escape + char)
            self._escape = ""
            return at + 1
        if (escape in ("", "\\") and char in "\\u") or (len(escape) >= 2 and char in _HEX):
            self._escape += char
            if len(escape) == 5:
                self._unicode_escape()
            return at + 1
        self._put(("\\ufffd" if len(self._escape) > 6 else "") + "\\" + escape)  # no escape: a backslash as text
        self._escape = ""
        return at

    def _unicode_escape(self) -> None:
        """`_escape` is one or two whole `\\uXXXX`."""
        last = int(self._escape[-4:], 16)
        if len(self._escape) == 12:
            if 0xDC00 <= last < 0xE000:
                self._put(self._escape)
                self._escape = ""
                return
            self._put("\\ufffd")
            self._escape = self._escape[6:]
        if 0xD800 <= last < 0xDC00:
            return  # the other half may follow
        self._put("\\ufffd" if 0xDC00 <= last < 0xE000 else self._escape)
        self._escape = ""


_CLOSABLE = frozenset({State.VALUE_OR_CLOSE, State.KEY_OR_CLOSE, State.COMMA_OR_CLOSE})
