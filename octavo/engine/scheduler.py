"""Decides what each step computes and what its result means. Integers only: no tensors, no sockets, no clock (callers
pass `now`, in seconds).

Called by engine/loop.py: `add` and `abort` between steps, `schedule` to make a plan, then `update` with its result or
`fail`, in the order of the plans; several plans may be in flight. There are no phases: each request is "computed so
far" chasing "tokens so far" within the step's token budget. Scheduled tokens count as computed at once, tokens still to
be sampled by plans in flight count as pending.

Invariants: every request that was added ends in exactly one reply with a finish_reason or a Failed, unless aborted. A
result counts only while its request's `epoch` is the one it was scheduled in. Rows, pages and budget: planner.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from octavo.engine.blocks import BlockPool
from octavo.engine.planner import Counters, Flight, Planner, SchedulerConfig
from octavo.engine.prefix import PrefixCache
from octavo.engine.request import Request, refused
from octavo.types import TokenLogprobs
from octavo.wire.messages import Add, Failed, TokenOutput
from octavo.wire.plan import Plan, Result

__all__ = ["Reply", "Scheduler", "SchedulerConfig"]

SAMPLED = 4
"""Of steps that only decode, and so are alike, every fourth tells how long they take."""

Reply = tuple[bytes, TokenOutput | Failed]
"""(client key, what it is told)."""


class Scheduler:
    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.max_len = min(config.max_model_len, config.num_blocks * config.block_size)
        """Longest sequence: what the model, and what all pages together can hold."""
        self.counters = Counters()
        self._planner = Planner(config, self.counters)
        self._clients: dict[bytes, dict[int, Request]] = {}
        self._flights: deque[Flight] = deque()
        self._num_plans = 0
        self._num_arrivals = 0

    @property
    def pool(self) -> BlockPool:
        return self._planner.pool

    @property
    def cache(self) -> PrefixCache:
        return self._planner.cache

    @property
    def num_waiting(self) -> int:
        return len(self._planner.queue)

    @property
    def num_running(self) -> int:
        return len(self._planner.running)

    @property
    def has_requests(self) -> bool:
        planner = self._planner
        return bool(planner.running) or len(planner.queue) > 0

    def add(self, client: bytes, add: Add, now: float) -> list[Reply]:
        """Queues a request. Replies at once when it is refused or already complete; never raises for its content."""
        if add.id in self._clients.get(client, ()):
            # To the client a Failed is final for the id, so the one that had it must end too.
            self.abort(client, [add.id])
            message = f"id {add.id} was given to a request before; every request needs its own"
            return [(client, Failed(add.id, "duplicate_id", message))]
        failed = refused(add, self.config.vocab_size, self.max_len)
        resumed = bool(add.output_ids)  # accepted before an engine restart: it stays accepted
        if failed is None and not resumed and self._planner.queue.full(self._planner.num_free_rows):
            message = f"{self.num_waiting} requests are waiting already; try again later"
            failed = Failed(add.id, "queue_full", message)
        if failed is not None:
            return [(client, failed)]
        request = Request(client, add, self._num_arrivals, now, self.max_len, self.cache.root(add.params.cache_salt))
        self._num_arrivals += 1
        ending = request.ending(0)
        if ending is not None:  # it was complete already when the engine before this one ended
            return [(client, TokenOutput(add.id, [], None, *ending, request.metrics()))]
        self._clients.setdefault(client, {})[add.id] = request
        self._planner.queue.push(request)
        self.counters.prompt_tokens += request.num_prompt
        return []

    def abort(self, client: bytes, ids: Iterable[int]) -> None:
        """Ends requests without a reply, at any stage; unknown ids are ignored."""
        for id in ids:
            request = self._clients.get(client, {}).get(id)
            if request is not None:
                self._finish(request)
                self.counters.aborts += 1

    def abort_client(self, client: bytes) -> None:
        self.abort(client, list(self._clients.get(client, ())))

    def schedule(self, now: float) -> Plan | None:
        """The next plan, to be submitted in any case; None when there is nothing to compute now."""
        if not self.has_requests:
            return None
        flight = self._planner.make(self._num_plans, now)
        if flight is None:
            return None
        self._num_plans += 1
        self.counters.steps += 1
        self._flights.append(flight)
        return flight.plan

    def update(self, plan: Plan, result: Result, now: float) -> list[Reply]:
        """Applies the result of the oldest plan in flight."""
        flight = self._flights[0]
        assert flight.plan is plan and result.index == plan.index, f"result {result.index} for plan {plan.index}"
        num_samples = sum(run.samples for run in plan.run)
        assert len(result.token_ids) == num_samples, f"{len(result.token_ids)} tokens for {num_samples} sampling rows"
        self._flights.popleft()
        self._planner.fresh.pop(plan.index, None)
        # What register() may rely on: plans before the next one in flight.
        confirmed = self._flights[0].plan.index - 1 if self._flights else self._num_plans
        replies: list[Reply] = []
        sample = 0
        for request, epoch, run, end in flight.items:
            if request.epoch != epoch:  # it ended or was preempted meanwhile; if so this is computed anew
                sample += run.samples
                continue
            if request.prompt_logprobs is not None:
                request.prompt_logprobs += result.prompt_logprobs.get(run.row, ())
            if run.samples:
                logprobs = result.logprobs[sample] if result.logprobs else None
                output = self._apply_token(request, result.token_ids[sample], logprobs, now, confirmed)
                replies.append((request.client, output))
                sample += 1
            elif end >= request.limit:  # max_tokens=0: the prompt was all that was wanted
                request.first_token = request.last_token = now
                replies.append((request.client, self._output(request, [], None, end)))
        return replies

    def took(self, us: int) -> None:
        """The oldest plan in flight was computed in `us` microseconds: for the pace of the plans to come."""
        flight = self._flights[0]
        if flight.prompt_tokens or flight.plan.index % SAMPLED == 0:
            self._planner.pace.observe(flight.decodes, flight.prompt_tokens, us)

    def fail(self, plan: Plan, message: str) -> list[Reply]:
        """The oldest plan in flight failed: its requests fail, and what it should have computed is forgotten."""
        flight = self._flights.popleft()
        assert flight.plan is plan
        replies: list[Reply] = []
        for request, epoch, _run, _end in flight.items:
            if request.epoch == epoch:
                self._finish(request)
                replies.append((request.client, Failed(request.id, "engine_error", message)))
        # Later plans in flight may build on this one's pages. Those that do are computed anew, and so, as this is
        # rare, are their neighbours in those plans.
        tainted = {page for pages in self._planner.fresh.values() for page in pages}
        self._planner.fresh.clear()
        for page in tainted:
            self.cache.unregister(page)
        if tainted:
            for request in list(self._planner.running):
                if not tainted.isdisjoint(request.block_ids):
                    self._planner.preempt(request)
        return replies

    def check(self) -> None:
        """Asserts that no page is lost, doubled or miscounted and that the prefix cache agrees."""
        self.pool.check(request.block_ids for request in self._planner.running)
        self.cache.check()
        live = {id(request) for requests in self._clients.values() for request in requests.values()}
        assert len(live) == self.num_running + self.num_waiting, "a request is lost"

    def _apply_token(
        self, request: Request, token: int, logprobs: TokenLogprobs | None, now: float, confirmed: int
    ) -> TokenOutput:
        """Once a token of every stream in every step: what most tokens need not know stands behind the return."""
        ids = request.token_ids
        ids.append(token)
        request.num_pending -= 1
        self.counters.generated_tokens += 1
        if len(ids) % self.config.block_size == 0:
            self._planner.register(request, confirmed)
        if request.first_token is not None and len(ids) < request.limit and token not in request.stop_ids:
            return TokenOutput(request.id, [token], None if logprobs is None else [logprobs])
        request.last_token = now
        if request.first_token is None:
            request.first_token = now
        return self._output(request, [token], None if logprobs is None else [logprobs], len(ids))

    def _output(
        self, request: Request, token_ids: list[int], logprobs: list[TokenLogprobs] | None, end: int
    ) -> TokenOutput:
        ending = request.ending(end)
        output = TokenOutput(request.id, token_ids, logprobs)
        first = request.num_output - len(request.add.output_ids) <= 1
        if ending is not None:
            output.finish_reason, output.stop_reason = ending
        if ending is not None or first:
            output.metrics = request.metrics()
            output.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        if ending is not None:
            self._finish(request)
        return output

    def _finish(self, request: Request) -> None:
        request.epoch += 1
        self._planner.leave(request)
        requests = self._clients[request.client]
        del requests[request.id]
        if not requests:
            del self._clients[request.client]
