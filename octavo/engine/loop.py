"""The engine's one loop: messages in → schedule → submit → collect → update → messages out.

Run by engine/process.py in a process of its own, or by client/offline.py in the caller's. It owns the sessions of the
clients and the plans in flight; the scheduler's requests are changed by nobody else. Single-threaded: only `drain()`
may be called from elsewhere (a signal handler, another thread) and only `busy_since` may be read there.

Invariants: plans are collected in the order they were submitted; a step that raises ends only its own requests; a
client is gone when it says so or its connection ends, silence alone is only told; nothing is computed for one that is
behind; the pool is checked whenever work runs out.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from octavo.engine.scheduler import Reply, Scheduler
from octavo.engine.stats import stats
from octavo.executor.base import Executor, StepFailed
from octavo.wire.messages import (
    PROTOCOL_VERSION,
    QUIET_S,
    Abort,
    Add,
    Bye,
    Draining,
    EngineInfo,
    Failed,
    Hello,
    Outputs,
    Ping,
    Pong,
    ToEngine,
    TokenOutput,
    Welcome,
)
from octavo.wire.plan import Plan
from octavo.wire.transport import Transport

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 1.0
"""Longest sleep of `run`: how late it may notice that it is to stop."""

_STEP_FAILED = "the engine failed while computing this request; try again"


class EngineLoop:
    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        transport: Transport,
        info: EngineInfo,
        clock: Callable[[], float] = time.monotonic,
        *,
        quiet: float | None = QUIET_S,
        memory_mb: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """The executor has been started. `clock`: seconds, monotonic. `quiet`: seconds of silence after which a
        client is spoken of in the log; None: never. `memory_mb`: this process's resident memory, for Stats."""
        self.busy_since: float | None = None
        """Clock at which the turn in progress began its work, None while it waits for messages: for a watchdog."""
        self._scheduler = scheduler
        self._executor = executor
        self._transport = transport
        self._info = info
        self._clock = clock
        self._quiet = quiet
        self._memory_mb = memory_mb
        self._last_seen: dict[bytes, float] = {}
        self._silent: set[bytes] = set()
        """Of whom the log has said so."""
        self._next_silence = math.inf
        """Before this clock no other client can have been silent for so long."""
        self._plans: deque[tuple[Plan, float]] = deque()
        """In flight, each with the clock at which it was submitted."""
        self._collected = -math.inf
        """When the last result came."""
        self._drain_wanted = False
        self._draining = False
        self._checked = True

    @property
    def has_requests(self) -> bool:
        """There are requests or plans in flight."""
        return bool(self._plans) or self._scheduler.has_requests

    def drain(self) -> None:
        """Take no new requests from the next turn on, and let `run` return once those here are done."""
        self._drain_wanted = True

    def run(self, stop: Callable[[], bool]) -> None:
        """Turns until `stop()`, or until drained."""
        try:
            while not stop():
                self.turn(IDLE_WAIT_S)
                if self._draining and not self.has_requests:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """After the last turn; idempotent."""
        self._scheduler.close()

    def turn(self, timeout: float | None) -> bool:
        """One round: what has arrived, and one step. Waits for messages at most `timeout` seconds (None: no limit), and
        only when there is nothing to compute. True if a step was computed."""
        messages = self._transport.receive(0 if self._has_work else timeout)
        self.busy_since = now = self._clock()
        try:
            for client, message in messages:
                self._handle(client, message, now)
            if now > self._next_silence:
                self._tell_silent(now)
            if self._transport.behind != self._scheduler.holding.behind:
                self._scheduler.pause(self._transport.behind)
            if self._drain_wanted and not self._draining:
                self._draining = True
                for client in self._last_seen:
                    self._transport.send(client, Draining())
            if self._scheduler.has_compiled:
                self._reply(self._scheduler.enter_compiled())
            worked = self._step()
            if self.has_requests:
                self._checked = False
            elif not self._checked:
                self._scheduler.check()
                self._checked = True
            return worked
        finally:
            self.busy_since = None

    # --- steps

    @property
    def _has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(self._plans) or scheduler.can_compute or scheduler.has_compiled

    def _step(self) -> bool:
        while len(self._plans) < self._executor.depth:
            plan = self._scheduler.schedule(self._clock())
            if plan is None:
                break
            self._plans.append((plan, self._clock()))
            self._executor.submit(plan)
            if plan.masked:  # the model is on its way, and the masks are computed beside it
                self._executor.masks(self._scheduler.masks(plan))
        if not self._plans:
            assert not self._scheduler.can_compute, "requests, but nothing to compute"
            return False
        plan, began = self._plans.popleft()
        try:
            result = self._executor.collect()
        except StepFailed as error:
            logger.error("step %d failed: %s", plan.index, error, exc_info=error)
            self._collected = self._clock()
            self._reply(self._scheduler.fail(plan, _STEP_FAILED))
            return True
        now = self._clock()
        self._scheduler.took(int((now - max(began, self._collected)) * 1e6))
        self._collected = now
        self._reply(self._scheduler.update(plan, result, now))
        return True

    def _reply(self, replies: list[Reply]) -> None:
        """One Outputs per client; failures each on their own."""
        outputs: dict[bytes, list[TokenOutput]] = {}
        for client, reply in replies:
            if isinstance(reply, TokenOutput):
                items = outputs.get(client)
                if items is None:
                    outputs[client] = [reply]
                else:
                    items.append(reply)
            else:
                self._transport.send(client, reply)
        for client, items in outputs.items():
            self._transport.send(client, Outputs(items))

    # --- clients

    def _handle(self, client: bytes, message: ToEngine, now: float) -> None:
        if isinstance(message, Hello):
            self._welcome(client, message, now)
            return
        if isinstance(message, Ping):
            self._transport.send(client, Pong(self._info.instance, stats(self._scheduler, self._memory_mb())))
        if client not in self._last_seen:
            if isinstance(message, Add):
                self._transport.send(client, Failed(message.id, "invalid_value", "say Hello before you add requests"))
            return
        self._last_seen[client] = now
        if client in self._silent:
            self._silent.discard(client)
            self._expect(now)
            logger.info("the client that was silent speaks again")
        if isinstance(message, Add):
            self._add(client, message, now)
        elif isinstance(message, Abort):
            self._scheduler.abort(client, message.ids)
        elif isinstance(message, Bye):
            self._forget(client)

    def _welcome(self, client: bytes, hello: Hello, now: float) -> None:
        """A Hello begins a new session: what the client had before is over."""
        self._forget(client)
        self._transport.send(client, Welcome(PROTOCOL_VERSION, self._info))
        if hello.version != PROTOCOL_VERSION:
            logger.warning("a client speaks protocol %d, this engine %d", hello.version, PROTOCOL_VERSION)
            return
        self._last_seen[client] = now
        self._expect(now)
        if self._draining:
            self._transport.send(client, Draining())

    def _add(self, client: bytes, add: Add, now: float) -> None:
        if self._draining or self._drain_wanted:
            self._transport.send(client, Failed(add.id, "unavailable", "the engine is shutting down; try again later"))
            return
        self._reply(self._scheduler.add(client, add, now))

    def _forget(self, client: bytes) -> None:
        if self._last_seen.pop(client, None) is not None:
            self._silent.discard(client)
            self._scheduler.abort_client(client)
            self._checked = False

    def _expect(self, now: float) -> None:
        """A client has spoken that may be the next to fall silent."""
        if self._quiet is not None:
            self._next_silence = min(self._next_silence, now + self._quiet)

    def _tell_silent(self, now: float) -> None:
        assert self._quiet is not None
        speaking = {client: seen for client, seen in self._last_seen.items() if client not in self._silent}
        for client, seen in list(speaking.items()):
            if now - seen > self._quiet:
                logger.warning("a client is silent for %.1f s; its connection stands, its requests go on", now - seen)
                self._silent.add(client)
                del speaking[client]
        self._next_silence = min(speaking.values(), default=math.inf) + self._quiet
