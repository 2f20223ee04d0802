"""How much work and memory a grammar may cause, in compiling and for each token. One place, so that a grammar is tried
under the limits under which it is followed."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_LEXER_STATES = 20_000
"""Of 1 to 2 kB each."""
MAX_STEP_ITEMS, MAX_ROW_ITEMS = 15_000, 1_000
"""Of the parser, for one mask and at one place of the text. An ambiguous grammar takes their product in time: 1 s a
mask at llguidance's own 50,000 and 2,000. A schema of 1,000 optional properties, or of 500 alternatives, needs fewer.
"""

SHORT_CPU_S, CPU_S = 0.05, 2.0
"""Processor time of a first trial of a grammar, and of the second one that follows where that was not enough."""
MAX_GRAMMAR_BYTES = 64 << 20
"""Of one grammar with all that following it adds. A schema of 4,000 properties takes 20 MB."""
EXPENSIVE = "grammar_too_expensive"
"""Code of the errors that end a request whose grammar takes more than one may."""
TOO_LARGE = (
    f"the grammar takes more than {MAX_GRAMMAR_BYTES >> 20} MiB of memory; "
    "make it smaller, with fewer repetitions inside each other"
)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the process in which grammars are tried is told first: whose child it is, and the model's files."""

    parent: int
    name: str
    path: str
    vocab_size: int


def parser_limits() -> Any:
    """llguidance's LLParserLimits."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_lexer_states=MAX_LEXER_STATES,
        step_max_items=MAX_STEP_ITEMS,
        max_items_in_row=MAX_ROW_ITEMS,
        verbose_errors=False,
    )
