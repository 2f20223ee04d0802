"""The engine's one loop: messages in → schedule → submit → collect → update → messages out.

Run by engine/process.py in a process of its own, or by client/offline.py in the caller's. It owns the sessions of the
clients and the plans in flight; the scheduler's requests are changed by nobody else. Single-threaded: only `drain()`
may be called from elsewhere (a signal handler, another thread) and only `busy_since` may be read there.

Invariants: plans are collected in the order they were submitted; a step that raises ends only its own requests; a
client that says nothing for `client_timeout` has no requests here; the pool is checked whenever work runs out.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from msgspec import structs

from octavo.engine.scheduler import Reply, Scheduler
from octavo.engine.stats import stats
from octavo.executor.base import Executor, StepFailed
from octavo.wire.messages import (
    CLIENT_TIMEOUT_S,
    PROTOCOL_VERSION,
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
        client_timeout: float | None = CLIENT_TIMEOUT_S,
        memory_mb: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """The executor has been started. `clock`: seconds, monotonic. `client_timeout`: seconds of silence after which
        a client is gone; None: never. `memory_mb`: this process's resident memory, for Stats."""
        self.busy_since: float | None = None
        """Clock at which the turn in progress began its work, None while it waits for messages: for a watchdog."""
        self.crashed = ""
        """The instance before, if it broke down by itself; clients are told."""
        self._scheduler = scheduler
        self._executor = executor
        self._transport = transport
        self._info = info
        self._clock = clock
        self._client_timeout = client_timeout
        self._memory_mb = memory_mb
        self._last_seen: dict[bytes, float] = {}
        self._next_silence = math.inf
        """Before this clock no client can have been silent for too long."""
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
        messages = self._transport.receive(0 if self._has_work else self._wait(timeout))
        self.busy_since = now = self._clock()
        try:
            for client, message in messages:
                self._handle(client, message, now)
            if now > self._next_silence:
                self._drop_silent(now)
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
            self._executor.submit(plan, self._scheduler.masks())
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
        if client not in self._last_seen:
            if isinstance(message, Ping | Add):  # it takes us for the engine before; it will say Hello and add again
                self._transport.send(client, self._pong(known=False))
            return
        self._last_seen[client] = now
        if isinstance(message, Add):
            self._add(client, message, now)
        elif isinstance(message, Abort):
            self._scheduler.abort(client, message.ids)
        elif isinstance(message, Ping):
            self._transport.send(client, self._pong(known=True))
        elif isinstance(message, Bye):
            self._forget(client)

    def _welcome(self, client: bytes, hello: Hello, now: float) -> None:
        """A Hello begins a new session: what the client had before is over."""
        self._forget(client)
        self._transport.send(client, Welcome(PROTOCOL_VERSION, structs.replace(self._info, crashed=self.crashed)))
        if hello.version != PROTOCOL_VERSION:
            logger.warning("a client speaks protocol %d, this engine %d", hello.version, PROTOCOL_VERSION)
            return
        self._last_seen[client] = now
        if self._client_timeout is not None:
            self._next_silence = min(self._next_silence, now + self._client_timeout)
        if self._draining:
            self._transport.send(client, Draining())

    def _add(self, client: bytes, add: Add, now: float) -> None:
        if self._draining or self._drain_wanted:
            self._transport.send(client, Failed(add.id, "unavailable", "the engine is shutting down; try again later"))
            return
        self._reply(self._scheduler.add(client, add, now))

    def _pong(self, *, known: bool) -> Pong:
        return Pong(self._info.instance, known, stats(self._scheduler, self._memory_mb()))

    def _forget(self, client: bytes) -> None:
        if self._last_seen.pop(client, None) is not None:
            self._scheduler.abort_client(client)
            self._checked = False

    def _drop_silent(self, now: float) -> None:
        assert self._client_timeout is not None
        for client, seen in list(self._last_seen.items()):
            if now - seen > self._client_timeout:
                logger.info("a client has been silent for %.1f s; its requests are aborted", now - seen)
                self._forget(client)
        self._next_silence = min(self._last_seen.values(), default=math.inf) + self._client_timeout

    def _wait(self, timeout: float | None) -> float | None:
        """Not longer than until the next client's time is up."""
        if self._client_timeout is None or not self._last_seen:
            return timeout
        left = max(min(self._last_seen.values()) + self._client_timeout - self._clock(), 0.001)
        return left if timeout is None else min(left, timeout)
