"""Tables of text on standard output: columns as wide as what is in them, nothing but text, so that scripts can read
them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines without blanks at their ends."""
    every = [heading, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(heading))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every)
    return "\n".join(lines)


def numbers_by_type(counts: Mapping[str, int]) -> str:
    """How many numbers a model has of each type: `35 k F32, 106.2 M Q4_1`."""
    return ", ".join(
        f"{count / 1e6:,.1f} M {kind}" if count >= 1e6 else f"{count / 1e3:,.0f} k {kind}"
        for kind, count in sorted(counts.items())
    )
