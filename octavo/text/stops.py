"""Stop strings in streamed text. Owns the text that might still turn into a stop string; used by client/stream.py.

Invariant: the result does not depend on how the text was cut into pieces: the stop string that is complete first
ends the text, of several complete at the same character the longest. Linear in the text, whatever the stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The stop strings of a request and their tables, made once; all its choices look for them."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.tables = [_Table(stop) for stop in dict.fromkeys(stops) if stop]


class StopMatcher:
    """Feed text with `push`; it returns the text that is safe to show. `matched` is the stop string found."""

    def __init__(self, stops: StopStrings | Sequence[str], *, include_in_output: bool = False) -> None:
        strings = stops if isinstance(stops, StopStrings) else StopStrings(stops)
        self._needles = [_Needle(table) for table in strings.tables]
        self._include = include_in_output
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """More text. With `armed` False (below min_tokens) no stop string may end in it, but one may begin.

        After a match nothing more is shown."""
        if self.matched is not None:
            return ""
        if not self._needles:
            return text
        best: tuple[int, int] | None = None
        for needle in self._needles:
            end = needle.advance(text, armed)
            if end >= 0 and (best is None or (end, -len(needle.text)) < best):
                best = (end, -len(needle.text))
                self.matched = needle.text
        text = self._held + text
        if best is not None:
            end = len(self._held) + best[0]
            self._held = ""
            return text[: end if self._include else end + best[1]]
        held = max(needle.state for needle in self._needles)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The text ended without a stop string: what was held back."""
        held, self._held = self._held, ""
        return held


class _Table:
    """A stop string and where to go on in it when the next character is another (Knuth, Morris, Pratt)."""

    __slots__ = ("fallback", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.fallback = [0, 0]
        k = 0
        for char in text[1:]:
            while k and text[k] != char:
                k = self.fallback[k]
            k += text[k] == char
            self.fallback.append(k)


class _Needle:
    """One stop string and how many of its characters the text ends with."""

    __slots__ = ("_fallback", "state", "text")

    def __init__(self, table: _Table) -> None:
        self.text = table.text
        self.state = 0
        self._fallback = table.fallback

    def advance(self, text: str, armed: bool) -> int:
        """Read the text; the index after the first complete match, or -1."""
        needle, fallback, k, i = self.text, self._fallback, self.state, 0
        while i < len(text):
            if k == 0:
                i = text.find(needle[0], i)
                if i < 0:
                    break
            char = text[i]
            i += 1
            while k and needle[k] != char:
                k = fallback[k]
            k += needle[k] == char
            if k == len(needle):
                if armed:
                    self.state = 0
                    return i
                k = fallback[k]
        self.state = k
        return -1
