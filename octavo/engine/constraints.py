"""What binds the output of requests: grammars compiled and masks computed in threads of their own, beside the steps.
Only masks that take less time than waking a thread are computed at once.

Owned by engine/scheduler.py, which asks for a `Constraint` when a request with a grammar comes, admits the request once
that is ready, tells it each token, and takes the masks for a plan. Threads start with the first grammar: what they
load costs an engine without grammars nothing. Invariants: a constraint belongs to the scheduler or, while it is
`behind`, to one thread here; a step waits for no mask that takes longer than SLOW_S of a processor: such a constraint
goes to the slow thread, and comes back through `take_ready`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from octavo.engine.constraint import SLOW_S, Constraint
from octavo.fair import RoundRobin
from octavo.grammar.compiled import CompiledGrammars
from octavo.grammar.matcher import Vocabulary
from octavo.wire.messages import Add

CHEAP_S = 50e-6
"""Masks are computed at once when the last ones took less, all of them together. One within a JSON string takes some
20 microseconds, one of a regex that counts 300."""
LOADING_SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from the others while the vocabulary loads, which takes half a second: a
step asks for it several times."""
STACK_BYTES = 16 << 20
"""Of the threads: llguidance takes nested grammars apart by recursion; more than grammar/trial.py tries them with."""
SLOW_NICE = 10
"""What the slow thread leaves to the steps, where a thread can say so."""
STUCK_S = 0.1
"""A step waits no longer for one mask, even when that had no processor."""
CLOSE_S = 1.0

Task = Callable[[], None]


class Constraints:
    """`vocabulary`: makes it, which takes a moment. `wake` ends the engine's wait for messages; it is called in a
    thread."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], wake: Callable[[], None]) -> None:
        self._make_vocabulary = vocabulary
        self._vocabulary: Vocabulary | None = None
        self._loading = threading.Lock()
        self._wake = wake
        self._ready: deque[Constraint] = deque()
        self._compiler: _Worker | None = None
        self._slow: _Worker | None = None
        self._masker: _Masker | None = None

    @property
    def grammars(self) -> CompiledGrammars | None:
        """Once one was compiled."""
        return None if self._vocabulary is None else self._vocabulary.grammars

    def compile(self, key: object, add: Add) -> Constraint:
        """A constraint that will be among those of `take_ready`; until then it is nobody else's."""
        constraint = Constraint(key, add)
        self._start()
        assert self._slow is not None and self._compiler is not None
        worker = self._slow if add.hard_grammar else self._compiler
        constraint.behind = True
        worker.give(add.owner, lambda: self._finish(constraint, lambda: constraint.compile(self._loaded)))
        return constraint

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def take_ready(self) -> list[Constraint]:
        """Those that are compiled, or caught up, since the last time; look at `error` first."""
        found = []
        while self._ready:
            found.append(self._ready.popleft())
        return found

    def compute(self, constraints: Sequence[Constraint]) -> None:
        """Computes, or begins to compute, the masks for what follows the tokens so far."""
        if sum([constraint.took for constraint in constraints]) < CHEAP_S:
            for constraint in constraints:
                constraint.compute()
            return
        assert self._masker is not None
        self._masker.give(constraints)

    def advance(self, constraint: Constraint, token: int) -> None:
        """Of one that is slow: the next token, and the mask behind it. It is held until it is among `take_ready`."""
        assert self._slow is not None and constraint.slow
        constraint.behind = True
        self._slow.give(constraint.add.owner, lambda: self._finish(constraint, lambda: constraint.advance(token)))

    def masks(self, constraints: Sequence[Constraint | None]) -> list[bytes | None]:
        """Those of a plan's samples, in their order, as wire/plan.py has them. Blocks until they are computed; those
        that are not there in time are None and `late`."""
        if self._masker is not None:
            self._masker.wait([each for each in constraints if each is not None and each.behind])
        found: list[bytes | None] = []
        for constraint in constraints:
            if constraint is not None and constraint.behind:
                constraint.late = True
                found.append(None)
            elif constraint is not None:
                constraint.late = False
                found.append(constraint.mask)
            else:
                found.append(None)
        return found

    def close(self) -> None:
        """Ends the threads; waits a moment for what they do. Idempotent."""
        for owner in (self._compiler, self._slow, self._masker):
            if owner is not None:
                owner.close()
        self._compiler = self._slow = self._masker = None

    def _finish(self, constraint: Constraint, work: Task) -> None:
        work()
        constraint.behind = False
        self._ready.append(constraint)
        self._wake()

    def _start(self) -> None:
        if self._compiler is not None:
            return
        self._compiler = _Worker("octavo-grammar-0", 0)
        self._slow = _Worker("octavo-grammar-1", SLOW_NICE)
        self._masker = _Masker(self._finish)

    def _loaded(self) -> Vocabulary:
        with self._loading:
            if self._vocabulary is None:
                usual = sys.getswitchinterval()
                sys.setswitchinterval(LOADING_SWITCH_S)
                try:
                    self._vocabulary = self._make_vocabulary()
                finally:
                    sys.setswitchinterval(usual)
            return self._vocabulary


class _Worker:
    """A thread for work that takes long, in turn for each owner."""

    def __init__(self, name: str, nice: int) -> None:
        self._tasks: RoundRobin[Task] = RoundRobin()
        self._changed = threading.Condition()
        self._closed = False
        self._nice = nice
        self._thread = _started(self._run, name)

    def give(self, owner: str, task: Task) -> None:
        with self._changed:
            self._tasks.push(owner, task)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere it is the whole process that is nice
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                task = self._tasks.pop()
            task()


class _Masker:
    """A thread for masks that a step waits for, the cheap ones first. One that takes longer than a step may wait keeps
    its thread, which ends with it, and another thread takes over. `finish`: what such a thread does in the end."""

    def __init__(self, finish: Callable[[Constraint, Task], None]) -> None:
        self._finish = finish
        self._waiting: deque[Constraint] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._current: Constraint | None = None
        self._began = self._began_wall = 0.0
        with self._changed:
            self._thread = _started(self._run, "octavo-grammar-2")

    def give(self, constraints: Sequence[Constraint]) -> None:
        with self._changed:
            for constraint in sorted(constraints, key=lambda each: each.took):
                constraint.behind = True
                self._waiting.append(constraint)
            self._changed.notify_all()

    def wait(self, constraints: Sequence[Constraint]) -> None:
        """Until none of these is behind, but for the slow ones."""
        with self._changed:
            while any(each.behind and not each.slow for each in constraints):
                if not self._changed.wait(SLOW_S) and self._is_stuck():
                    self._replace()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def _is_stuck(self) -> bool:
        if self._current is None:
            return False
        if time.monotonic() - self._began_wall > STUCK_S:
            return True
        return _cpu_time(self._thread) - self._began > SLOW_S

    def _replace(self) -> None:
        assert self._current is not None
        self._current.is_slow()
        self._current = None
        self._thread = _started(self._run, "octavo-grammar-2")

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._waiting and not self._closed and self._thread is me:
                    self._changed.wait()
                if self._closed or self._thread is not me:
                    return
                constraint = self._current = self._waiting.popleft()
                self._began, self._began_wall = time.thread_time(), time.monotonic()
            constraint.compute()
            with self._changed:
                if self._thread is me:
                    self._current = None
                    constraint.behind = False
                    self._changed.notify_all()
                    continue
            self._finish(constraint, lambda: None)
            return


def _cpu_time(thread: threading.Thread) -> float:
    """Seconds of a processor that a thread has had; of the clock, where nobody says."""
    clock = getattr(time, "pthread_getcpuclockid", None)
    if clock is None or thread.ident is None:
        return time.monotonic()
    return time.clock_gettime(clock(thread.ident))


def _started(run: Task, name: str) -> threading.Thread:
    usual = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
    finally:
        threading.stack_size(usual)
    return thread
