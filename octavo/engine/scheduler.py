"""Decides what each step computes and what its result means. Integers only: no tensors, no sockets, no clock (callers
pass `now`, in seconds).

Called by engine/loop.py: `add` and `abort` between steps, `schedule` to make a plan, then `update` with its result or
`fail`, in the order of the plans; several plans may be in flight. There are no phases: each request is "computed so
far" chasing "tokens so far" within the step's token budget. Scheduled tokens count as computed at once, tokens still to
be sampled by plans in flight count as pending.

Some requests are held for a while, without row or pages (holding.py), and go on where they stopped.

Invariants: every request that was added ends in exactly one reply with a finish_reason or a Failed, unless aborted. A
result counts only while its request's `epoch` is the one it was scheduled in. Rows, pages and budget: planner.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set

from octavo.engine import journal
from octavo.engine.blame import VERDICT, Blame
from octavo.engine.constraint import Constraint
from octavo.engine.constraints import Constraints
from octavo.engine.holding import Holding
from octavo.engine.planner import Flight, Planner, SchedulerConfig
from octavo.engine.request import Request, refused
from octavo.engine.tables import BlockTables
from octavo.grammar.matcher import GrammarError
from octavo.types import TokenLogprobs
from octavo.wire.messages import Add, Counters, Failed, TokenOutput
from octavo.wire.plan import Masks, Plan, Result

__all__ = ["Reply", "Scheduler", "SchedulerConfig"]


SAMPLED = 4
"""Of steps that only decode, and so are alike, every fourth tells how long they take."""

Reply = tuple[bytes, TokenOutput | Failed]
"""(client key, what it is told)."""


class Scheduler:
    def __init__(
        self, config: SchedulerConfig, constraints: Constraints | None = None, blame: Blame | None = None
    ) -> None:
        """`constraints`: compiles grammars; None where no request has one. `blame`: what earlier engines broke of."""
        self.config = config
        self.counters = Counters()
        self._planner = Planner(config, self.counters)
        self.max_len = self.tables.longest(config.max_model_len)
        """Longest sequence: what the model, and what all blocks together can hold."""
        self._block_size = self.tables.block_size
        self._clients: dict[bytes, dict[int, Request]] = {}
        self._flights: deque[Flight] = deque()
        self._num_plans = 0
        self._num_arrivals = 0
        self.constraints = constraints
        self.holding = Holding(blame or Blame())
        self._compiling: set[Request] = set()
        """Accepted, and queued as soon as their grammar is compiled, or has caught up."""
        self._stalled = False
        """Nothing can be computed before a grammar has caught up, or a request comes or goes."""

    @property
    def tables(self) -> BlockTables:
        return self._planner.tables

    @property
    def num_waiting(self) -> int:
        return len(self._planner.queue) + len(self._compiling) + len(self.holding)

    @property
    def num_running(self) -> int:
        return len(self._planner.running)

    @property
    def has_requests(self) -> bool:
        """There are some that have not ended."""
        planner = self._planner
        if planner.running or len(planner.queue):
            return True
        return bool(self._compiling) or len(self.holding) > 0

    @property
    def can_compute(self) -> bool:
        """Some of them can be computed now."""
        planner = self._planner
        return not self._stalled and (bool(planner.running) or len(planner.queue) > 0)

    @property
    def has_compiled(self) -> bool:
        """There is something for `enter_compiled`."""
        return self.constraints is not None and self.constraints.has_ready

    def add(self, client: bytes, add: Add, now: float) -> list[Reply]:
        """Queues a request. Replies at once when it is refused or already complete; never raises for its content."""
        if add.id in self._clients.get(client, ()):
            # To the client a Failed is final for the id, so the one that had it must end too.
            self.abort(client, [add.id])
            message = f"id {add.id} was given to a request before; every request needs its own"
            return [(client, Failed(add.id, "duplicate_id", message))]
        failed = refused(add, self.config.vocab_size, self.max_len)
        resumed = bool(add.output_ids)  # accepted before an engine restart: it stays accepted
        if failed is None and not resumed and self._planner.is_full(add.owner, self._compiling):
            message = f"{self.num_waiting} requests are waiting already; try again later"
            failed = Failed(add.id, "queue_full", message)
        if failed is not None:
            journal.refused(add, failed)
            return [(client, failed)]
        request = Request(client, add, self._num_arrivals, now, self.max_len, self._root(add))
        if self.holding.blame.is_guilty(request.identity):
            journal.failed(request, VERDICT)
            return [(client, Failed(add.id, "engine_error", VERDICT))]
        self._num_arrivals += 1
        self._stalled = False
        ending = request.ending(0) if add.grammar is None else None
        if ending is not None:  # it was complete already when the engine before this one ended
            return [(client, TokenOutput(add.id, [], None, *ending, request.metrics()))]
        self._clients.setdefault(client, {})[add.id] = request
        journal.taken(request)
        self.counters.prompt_tokens += request.num_prompt
        self._place(request)
        return []

    def _root(self, add: Add) -> bytes:
        return self.tables.prefix.root(add.params.cache_salt)

    def pause(self, behind: Set[bytes]) -> None:
        """From now on the requests of these clients are held, and those of all others go on."""
        self.holding.behind = frozenset(behind)
        held = [request for request in self._planner.running if request.client in behind]
        for request in held:
            self._planner.unseat(request)
        self.holding.hold(held + self._planner.queue.take(lambda request: request.client in behind))
        self._release_held()

    def _release_held(self) -> None:
        """Places those that may run by now."""
        self._stalled = False
        for request in self.holding.take():
            self._place(request)

    def _place(self, request: Request) -> None:
        """Where it waits for what it needs next."""
        if not self.holding.admits(request):
            return
        if request.add.grammar is not None and request.constraint is None:
            assert self.constraints is not None
            self._compiling.add(request)
            request.constraint = self.constraints.compile(request, request.add)
        else:
            self._planner.queue.push(request)

    def enter_compiled(self) -> list[Reply]:
        """Queues the requests whose grammar is compiled by now, and lets those go on whose grammar has caught up; those
        whose grammar is wrong fail."""
        replies: list[Reply] = []
        self._stalled = False
        for constraint in self.constraints.take_ready() if self.constraints is not None else ():
            request = constraint.key
            assert isinstance(request, Request)
            if self._clients.get(request.client, {}).get(request.id) is not request:  # ended meanwhile
                continue
            if constraint.error is not None:
                replies.append((request.client, self._fail_bound(request, constraint.error)))
            elif request.ending(0) is not None or constraint.is_finished or constraint.exhausted:
                replies.append((request.client, self._complete(request)))
            elif request in self._compiling:
                self._compiling.discard(request)
                self._place(request)
        return replies

    def abort(self, client: bytes, ids: Iterable[int]) -> None:
        """Ends requests without a reply, at any stage; unknown ids are ignored."""
        for id in ids:
            request = self._clients.get(client, {}).get(id)
            if request is not None:
                journal.aborted(request)
                self._finish(request)
                self.counters.aborts += 1

    def abort_client(self, client: bytes) -> None:
        self.abort(client, list(self._clients.get(client, ())))

    def schedule(self, now: float) -> Plan | None:
        """The next plan, to be submitted in any case; None when there is nothing to compute now, as while plans are in
        flight that a failed one may have shaken."""
        if not self.can_compute or (self._flights and self._flights[0].shaken):
            return None
        flight = self._planner.make(self._num_plans, now)
        if flight is None:
            self._stalled = not self._flights and any(r.is_held for r in self._planner.running)
            return None
        self._num_plans += 1
        self.counters.steps += 1
        self._flights.append(flight)
        return flight.plan

    def masks(self, plan: Plan) -> Masks:
        """Of the plan made last, which is masked. Blocks until they are computed, or will come too late for it."""
        flight = self._flights[-1]
        assert flight.plan is plan and self.constraints is not None
        bound = [request.constraint for request, _, run, _ in flight.items if run.samples]
        return Masks(plan.index, tuple(self.constraints.masks(bound)))

    def update(self, plan: Plan, result: Result, now: float) -> list[Reply]:
        """Applies the result of the oldest plan in flight."""
        flight = self._flights[0]
        assert flight.plan is plan and result.index == plan.index, f"result {result.index} for plan {plan.index}"
        num_samples = sum(run.samples for run in plan.run)
        assert len(result.tokens) == num_samples, f"tokens of {len(result.tokens)} for {num_samples} sampling rows"
        self._flights.popleft()
        self.tables.fresh.pop(plan.index, None)
        # What register() may rely on: plans before the next one in flight.
        confirmed = self._flights[0].plan.index - 1 if self._flights else self._num_plans
        replies: list[Reply] = []
        moved: list[Constraint] = []
        sample = 0
        for request, epoch, run, end in flight.items:
            if request.epoch != epoch:  # it ended or was preempted meanwhile; if so this is computed anew
                sample += run.samples
                continue
            if request.prompt_logprobs is not None:
                request.prompt_logprobs += result.prompt_logprobs.get(run.row, ())
            if run.samples:
                entries = result.logprobs[sample] if result.logprobs else None
                logprobs = None if entries is None else entries[0]
                (token,) = result.tokens[sample]
                sample += 1
                if request.constraint is not None:
                    if request.constraint.late:
                        self._put_off(request, request.constraint)
                        continue
                    if (ended := self._follow(request, token, moved)) is not None:
                        replies.append((request.client, ended))
                        continue
                replies.append((request.client, self._apply_token(request, token, logprobs, now, confirmed)))
            elif end >= request.limit:  # max_tokens=0: the prompt was all that was wanted
                request.first_token = request.last_token = now
                request.embedding = result.embeddings.get(run.row)
                replies.append((request.client, self._output(request, [], None, end)))
        if moved and self.constraints is not None:
            self.constraints.compute(moved)
        return replies

    def took(self, us: int) -> None:
        """The oldest plan in flight was computed in `us` microseconds: for the pace of the plans to come."""
        flight = self._flights[0]
        if flight.prompt_tokens or flight.plan.index % SAMPLED == 0:
            self._planner.pace.observe(flight.decodes, flight.prompt_tokens, us)

    def fail(self, plan: Plan, message: str) -> list[Reply]:
        """The oldest plan in flight failed: its requests fail, and what it should have computed is forgotten. Of a plan
        that was in flight when one before it failed, they are computed anew instead."""
        flight = self._flights.popleft()
        assert flight.plan is plan
        self.counters.step_failures += 1
        replies: list[Reply] = []
        for request, epoch, _run, _end in flight.items:
            if request.epoch != epoch:
                continue
            if flight.shaken:
                self._planner.preempt(request)
                continue
            journal.failed(request, f"step {plan.index} failed")
            self._finish(request)
            replies.append((request.client, Failed(request.id, "engine_error", message)))
        for later in self._flights:
            later.shaken = True
        # Later plans in flight may build on this one's blocks. Those that do are computed anew, and so, as this is
        # rare, are their neighbours in those plans.
        if tainted := self.tables.take_back():
            for request in list(self._planner.running):
                if self.tables.builds_on(request, tainted):
                    self._planner.preempt(request)
        return replies

    def close(self) -> None:
        """Ends the threads that grammars have started; idempotent."""
        if self.constraints is not None:
            self.constraints.close()

    def check(self) -> None:
        """Asserts that no block is lost, doubled or miscounted and that the prefix cache agrees."""
        self.tables.check(self._planner.running)
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
        if len(ids) % self._block_size == 0:
            self.tables.register(request, confirmed)
        known = request.first_token is not None and request.constraint is None
        if known and len(ids) < request.limit and token not in request.stop_ids:
            return TokenOutput(request.id, [token], None if logprobs is None else [logprobs])
        request.last_token = now
        if request.first_token is None:
            request.first_token = now
            if self.holding.heard(request):
                self._release_held()
        return self._output(request, [token], None if logprobs is None else [logprobs], len(ids))

    def _follow(self, request: Request, token: int, moved: list[Constraint]) -> TokenOutput | Failed | None:
        """Moves the request's constraint on by the token that was just sampled, and notes it in `moved` when the next
        mask is to be computed; → the request's end where the token does not count."""
        constraint = request.constraint
        assert constraint is not None
        if constraint.error is None and constraint.exhausted:
            return self._complete(request)
        if constraint.error is None:
            ends = token in request.stop_ids and request.num_output + 1 >= request.add.params.min_tokens
            more = not ends and len(request.token_ids) + 1 < request.limit
            if constraint.slow and more and self.constraints is not None:
                self.constraints.advance(constraint, token)
                return None
            if not ends:
                constraint.consume(token)
            if constraint.error is None:
                if more and not constraint.is_finished:
                    moved.append(constraint)
                return None
        return self._fail_bound(request, constraint.error)

    def _put_off(self, request: Request, constraint: Constraint) -> None:
        """The step did not wait for the request's mask: it leaves its row, and comes back when it is there."""
        constraint.late = False
        if constraint.behind:
            self._planner.unseat(request)
            self._compiling.add(request)
        else:
            self._planner.preempt(request)

    def _complete(self, request: Request) -> TokenOutput:
        """The end of a request that is complete, or whose grammar allows nothing further, without a token."""
        finish_reason, stop_reason = request.ending(0) or ("stop", None)
        output = TokenOutput(request.id, [], None, finish_reason, stop_reason, request.metrics())
        output.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        journal.finished(request, finish_reason)
        self._finish(request)
        return output

    def _fail_bound(self, request: Request, error: GrammarError) -> Failed:
        """Ends a request whose grammar cannot be compiled, or followed."""
        journal.failed(request, f"its grammar: {str(error)[:200]}")
        self._finish(request)
        if error.is_users:
            return Failed(request.id, error.code, f"grammar: {error}", "grammar")
        return Failed(request.id, "engine_error", "the engine failed to follow the grammar of this request")

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
            output.embedding = request.embedding
            journal.finished(request, ending[0])
            self._finish(request)
        return output

    def _finish(self, request: Request) -> None:
        request.epoch += 1
        self._stalled = False
        if request in self._compiling:
            self._compiling.discard(request)
        elif request not in self.holding:
            self._planner.leave(request)
        if self.holding.leave(request):
            self._release_held()
        requests = self._clients[request.client]
        del requests[request.id]
        if not requests:
            del self._clients[request.client]
