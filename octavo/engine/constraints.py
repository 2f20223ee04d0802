"""What binds the output of requests: grammars compiled and masks computed in threads of their own, beside the steps.
Only masks that take less time than waking a thread are computed at once.

Owned by engine/scheduler.py, which asks for a `Constraint` when a request with a grammar comes, admits the request once
that is `done`, tells it each token, and takes the masks for a plan. Threads start with the first grammar: what they
load costs an engine without grammars nothing. Invariant: a constraint belongs to the scheduler or, while a job of its
is on the way, to one thread here; who hands it over does not touch it before the job is done.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

from octavo.grammar.matcher import GrammarError, Matcher, Vocabulary
from octavo.wire.messages import Add
from octavo.wire.plan import Masks

logger = logging.getLogger(__name__)

COMPILERS = 2
"""Grammars that are compiled side by side: a hard one does not hold up all others."""
CHEAP_S = 50e-6
"""Masks are computed at once when the last ones took less, all of them together. One within a JSON string takes some
20 microseconds, one of a regex that counts 300."""
LOADING_SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from the others while the vocabulary loads, which takes half a second: a
step asks for it several times."""
STACK_BYTES = 16 << 20
"""Of the threads: llguidance takes nested grammars apart by recursion; more than grammar/trial.py tries them with."""
CLOSE_S = 1.0
_INTERNAL = "the engine failed to follow the grammar"


class Constraint:
    """The grammar of one request, at the place to which its output has come. `key`: whatever the scheduler wants."""

    __slots__ = ("_job", "_mask", "_matcher", "add", "error", "exhausted", "key", "took")

    def __init__(self, key: object, add: Add) -> None:
        self.key = key
        self.add = add
        self.error: GrammarError | None = None
        """Why it cannot be followed; what was sampled since counts for nothing."""
        self.exhausted = False
        """Only the end can follow, and no token says so: what was sampled counts for nothing."""
        self._matcher: Matcher | None = None
        self._mask: bytes | None = None
        self.took = math.inf
        """Seconds of a processor that the last mask took."""
        self._job: _Job | None = None

    @property
    def is_finished(self) -> bool:
        """Nothing but the end can follow the tokens so far."""
        return self._matcher is not None and self._matcher.is_finished

    def consume(self, token: int) -> None:
        """The next token; a mask has to be computed anew, unless it is finished. Sets `error`."""
        assert self._matcher is not None
        with self._keeping_error("a grammar cannot be followed"):
            self._matcher.consume(token)

    def mask(self) -> bytes | None:
        """Of the tokens that may come next, once it is computed. None: any, as the token will not count."""
        if self._job is not None:
            self._job.done.wait()
            self._job = None
        return self._mask

    # -- in a thread

    def compile(self, vocabulary: Callable[[], Vocabulary]) -> None:
        add = self.add
        assert add.grammar is not None
        with self._keeping_error("a grammar cannot be compiled"):
            self._matcher = vocabulary().matcher(add.grammar, add.stop_ids)
            for token in add.output_ids:
                self._matcher.consume(token)
        self.compute()

    def compute(self) -> None:
        self._mask = None
        if self.error is not None or self._matcher is None or self._matcher.is_finished:
            return
        began = time.thread_time()
        with self._keeping_error("a mask cannot be computed"):
            self._mask = self._matcher.mask()
            self.exhausted = self._mask is None
            self.took = time.thread_time() - began

    @contextmanager
    def _keeping_error(self, what: str) -> Iterator[None]:
        """Whatever goes wrong inside is this request's alone; `what`: for the log, where it is our own fault."""
        try:
            yield
        except GrammarError as error:
            self.error = error
        except Exception:
            logger.exception(what)
            self.error = GrammarError(_INTERNAL, is_users=False)


class _Job:
    """Masks to compute after one step."""

    __slots__ = ("constraints", "done")

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self.constraints = constraints
        self.done = threading.Event()

    def run(self) -> None:
        try:
            for constraint in self.constraints:
                constraint.compute()
        finally:
            self.done.set()


class Constraints:
    """`vocabulary`: makes it, which takes a moment. `wake` ends the engine's wait for messages; it is called in a
    thread."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], wake: Callable[[], None]) -> None:
        self._make_vocabulary = vocabulary
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()
        self._wake = wake
        self._to_compile: SimpleQueue[Constraint | None] = SimpleQueue()
        self._to_compute: SimpleQueue[_Job | None] = SimpleQueue()
        self._compiled: deque[Constraint] = deque()
        self._threads: list[threading.Thread] = []

    def compile(self, key: object, add: Add) -> Constraint:
        """A constraint that will be among those of `take_compiled`; until then it is nobody else's."""
        if not self._threads:
            self._start()
        constraint = Constraint(key, add)
        self._to_compile.put(constraint)
        return constraint

    @property
    def has_compiled(self) -> bool:
        return bool(self._compiled)

    def take_compiled(self) -> list[Constraint]:
        """Those that are done since the last time; look at `error` first."""
        found = []
        while self._compiled:
            found.append(self._compiled.popleft())
        return found

    def compute(self, constraints: Sequence[Constraint]) -> None:
        """Computes, or begins to compute, the masks for what follows the tokens so far."""
        if sum([constraint.took for constraint in constraints]) < CHEAP_S:
            for constraint in constraints:
                constraint.compute()
            return
        job = _Job(constraints)
        for constraint in constraints:
            constraint._job = job
        self._to_compute.put(job)

    def close(self) -> None:
        """Ends the threads; waits a moment for what they do. Idempotent."""
        threads, self._threads = self._threads, []
        for thread in threads:
            (self._to_compute if thread is threads[-1] else self._to_compile).put(None)
        for thread in threads:
            thread.join(CLOSE_S)

    def _start(self) -> None:
        usual = threading.stack_size(STACK_BYTES)
        try:
            for number, target in enumerate([self._compile_all] * COMPILERS + [self._compute_all]):
                thread = threading.Thread(target=target, name=f"octavo-grammar-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        finally:
            threading.stack_size(usual)

    def _compile_all(self) -> None:
        while (constraint := self._to_compile.get()) is not None:
            constraint.compile(self._loaded)
            self._compiled.append(constraint)
            self._wake()

    def _compute_all(self) -> None:
        while (job := self._to_compute.get()) is not None:
            job.run()

    def _loaded(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                usual = sys.getswitchinterval()
                sys.setswitchinterval(LOADING_SWITCH_S)
                try:
                    self._vocabulary = self._make_vocabulary()
                finally:
                    sys.setswitchinterval(usual)
            return self._vocabulary


def masks(constraints: Sequence[Constraint | None]) -> Masks:
    """Those of a plan's sampling runs, in their order."""
    return lambda: [None if constraint is None else constraint.mask() for constraint in constraints]
