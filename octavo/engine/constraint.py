"""The grammar of one request, followed: at the place to which its output has come, and what that has cost so far.

Belongs to the scheduler or, while it is `behind`, to one thread of engine/constraints.py. Invariant: whatever goes
wrong inside is this request's alone; who follows a grammar for longer than its budget gets GrammarError with the code
"grammar_too_expensive", and nobody else notices.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from octavo.grammar.limits import EXPENSIVE
from octavo.grammar.matcher import GrammarError, Matcher, Vocabulary
from octavo.wire.messages import Add

logger = logging.getLogger(__name__)

BUDGET_S, BUDGET_PER_TOKEN_S = 3.0, 0.005
"""Processor time in which a grammar may be followed: so much, and so much more with each token. A mask within a JSON
string takes 20 microseconds, one of a regex that counts 1 millisecond."""
SLOW_S = 0.005
"""Processor time of one mask from which on a constraint is slow: no step waits for it any more."""
TRUSTED_AFTER = 16
"""Masks that are not slow, until it is waited for again; twice as many each time it was slow."""
_INTERNAL = "the engine failed to follow the grammar"
_EXPENSIVE = (
    "following it took {spent:.1f} s of processor time for {tokens} tokens; "
    f"it may take {BUDGET_S:g} s and {BUDGET_PER_TOKEN_S * 1e3:g} ms a token: make it smaller or less ambiguous"
)


class Constraint:
    """`key`: whatever the scheduler wants."""

    __slots__ = (
        "_matcher", "_patience", "_tokens", "add", "behind", "error", "exhausted", "key", "late", "mask", "slow",
        "spent", "took",
    )  # fmt: skip

    def __init__(self, key: object, add: Add) -> None:
        self.key = key
        self.add = add
        self.error: GrammarError | None = None
        """Why it cannot be followed; what was sampled since counts for nothing."""
        self.exhausted = False
        """Only the end can follow, and no token says so: what was sampled counts for nothing."""
        self.mask: bytes | None = None
        """Of the tokens that may come next. None: any, as the token will not count."""
        self.behind = False
        """A thread has it, and computes the mask."""
        self.late = False
        """A step could not wait for its mask: what was sampled in it counts for nothing, and comes again."""
        self.slow = 0
        """Masks until it is trusted again to be in time."""
        self.took = math.inf
        """Seconds of a processor that the last mask took."""
        self.spent = 0.0
        """Seconds of a processor since it was compiled."""
        self._tokens = 0
        self._patience = TRUSTED_AFTER
        self._matcher: Matcher | None = None

    @property
    def held(self) -> bool:
        """Its next token cannot be sampled before a slow mask is there."""
        return self.behind and self.slow > 0

    @property
    def is_finished(self) -> bool:
        """Nothing but the end can follow the tokens so far."""
        return self._matcher is not None and self._matcher.is_finished

    def consume(self, token: int) -> None:
        """The next token; a mask has to be computed anew, unless it is finished. Sets `error`."""
        assert self._matcher is not None
        self._tokens += 1
        with self._keeping_error("a grammar cannot be followed"):
            self._matcher.consume(token)

    def is_slow(self) -> None:
        """Its mask took too long, or does so right now."""
        self.slow = self._patience
        self._patience *= 2

    # -- in a thread

    def compile(self, vocabulary: Callable[[], Vocabulary]) -> None:
        add = self.add
        assert add.grammar is not None
        with self._keeping_error("a grammar cannot be compiled"):
            self._matcher = vocabulary().matcher(add.grammar, add.stop_ids)
            for token in add.output_ids:
                self._matcher.consume(token)
            self._tokens = len(add.output_ids)
        self.compute()

    def advance(self, token: int) -> None:
        """`consume` and `compute` of one that is slow."""
        began = time.thread_time()
        self.consume(token)
        self.spent += time.thread_time() - began
        self.compute()

    def compute(self) -> None:
        """Sets `mask`, `error` or `exhausted`."""
        self.mask = None
        if self.error is not None or self._matcher is None or self._matcher.is_finished:
            return
        began = time.thread_time()
        with self._keeping_error("a mask cannot be computed"):
            self.mask = self._matcher.mask()
            self.exhausted = self.mask is None
        self.took = took = time.thread_time() - began
        self.spent += took
        if took > SLOW_S:
            self.is_slow()
        elif self.slow:
            self.slow -= 1
        if self.spent > BUDGET_S + BUDGET_PER_TOKEN_S * self._tokens and self.error is None:
            self.mask = None
            message = _EXPENSIVE.format(spent=self.spent, tokens=self._tokens)
            self.error = GrammarError(message, is_users=True, code=EXPENSIVE)

    @contextmanager
    def _keeping_error(self, what: str) -> Iterator[None]:
        """`what`: for the log, where it is our own fault."""
        try:
            yield
        except GrammarError as error:
            self.error = error
        except Exception:
            logger.exception(what)
            self.error = GrammarError(_INTERNAL, is_users=False)
