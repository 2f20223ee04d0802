"""What somebody may have meant: the nearest known name to one that is not known. Pure; for messages only."""

from __future__ import annotations

from collections.abc import Iterable

CUTOFF = 0.6
"""Of difflib's likeness: below it a suggestion is a guess."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely is a misspelling of; None when none is near. - and _ are the same."""
    from difflib import get_close_matches  # only when something is wrong

    plain = {_plain(each): each for each in known}
    found = get_close_matches(_plain(name), plain, n=1, cutoff=CUTOFF)
    return plain[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """For the end of a message: '; did you mean NAME?', or nothing."""
    found = nearest(name, known)
    return "" if found is None else f"; did you mean {found}?"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
