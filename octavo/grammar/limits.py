"""How much work a grammar may cause, in compiling and for each token. One place, so that grammar/checker.py tries a
grammar under the limits under which grammar/matcher.py follows it."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_LEXER_STATES = 50_000
"""Of 1 to 2 kB each."""

CPU_S = 2.0
"""Processor time of one trial (grammar/trial.py)."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the process in which grammars are tried is told first: whose child it is, and the model's files."""

    parent: int
    name: str
    path: str
    vocab_size: int


def parser_limits() -> Any:
    """llguidance's LLParserLimits: with them a mask takes some 15 ms at most, whatever the grammar."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
