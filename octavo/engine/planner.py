"""Shares out rows, pages and a step's token budget. Integers only.

Owned and called by engine/scheduler.py, which knows the clients and the results. Rules, in their order:
1. Whoever lacks one token (decode) gets it; while prompts wait for computation a quarter of the budget is theirs. How
   much of their share they use beside decoding streams is up to pace.py.
2. Prompts that one step can finish go by priority, then age; into rows by priority, then owner by owner. One that takes
   several steps ("long") gets at least half of what is left, and all that the short ones do not need: neither kind can
   block the other, the oldest gets on.
3. Blocks that run out are taken from the running request with the lowest priority, then the youngest (preemption by
   recompute). Admission never preempts, and leaves the blocks that running prompts still need.

Invariant: `running` is sorted by (priority, arrival) and is walked from the front, victims fall from the back: whoever
has a place in the plan being made cannot be preempted by it.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Set
from dataclasses import dataclass, field

from octavo.engine import journal
from octavo.engine.pace import Pace
from octavo.engine.queue import WaitingQueue
from octavo.engine.request import Request
from octavo.engine.tables import BlockTables, Hit
from octavo.wire.messages import Counters
from octavo.wire.plan import Admit, Extend, GroupInfo, Plan, Run, Save


@dataclass(frozen=True)
class SchedulerConfig:
    groups: tuple[GroupInfo, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    max_queued_requests: int = 1024
    prefix_cache: bool = True
    num_checkpoints: int = 0
    """As in WorkerInfo."""
    checkpoint_interval: int = 512
    """Tokens, a multiple of the block size."""
    unfelt_us: int = 0
    """Microseconds that a step with prompts may take in any case (pace.py)."""


@dataclass(slots=True)
class Flight:
    """A plan and whom it computes: (request, its epoch then, run, tokens computed after the run). While it is made,
    what will stand in the plan is listed here."""

    plan: Plan
    items: list[tuple[Request, int, Run, int]] = field(default_factory=list)
    left: int = 0
    """Token budget not given away yet."""
    long: Request | None = None
    """The long prompt of this step, run last, and the tokens it has for certain."""
    long_tokens: int = 0
    admit: list[Admit] = field(default_factory=list)
    extend: list[Extend] = field(default_factory=list)
    preempted: bool = False
    decodes: int = 0
    """Runs of one token; all other runs compute `prompt_tokens`."""
    prompt_tokens: int = 0
    shaken: bool = False
    """It was in flight when another failed: should it fail too, that is not the doing of its own requests."""


@dataclass(slots=True)
class _Steady:
    """The last plan, if it computed one token of every running request and nothing else: until something changes the
    next one is the same, but for its index and the pages that fill."""

    items: list[tuple[Request, int, Run, int]]
    run: tuple[Run, ...]
    steps_left: int
    """Until a request has computed all it will ever compute."""
    bound: list[Request]
    """Those that may not run while a token of theirs is in flight."""


class Planner:
    def __init__(self, config: SchedulerConfig, counters: Counters) -> None:
        self.tables = BlockTables(
            config.groups, config.max_num_batched_tokens, config.prefix_cache, config.num_checkpoints,
            config.checkpoint_interval,
        )  # fmt: skip
        self.queue = WaitingQueue(config.max_queued_requests, long_prompt=config.max_num_batched_tokens)
        self.pace = Pace(config.max_num_batched_tokens, config.max_num_seqs, config.unfelt_us)
        self.running: list[Request] = []
        self._budget = config.max_num_batched_tokens
        self._block_size = self.tables.block_size
        self._counters = counters
        self._free_rows = list(range(config.max_num_seqs))  # a heap: the lowest row is used first
        self._release: list[int] = []
        self._steady: _Steady | None = None

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def is_full(self, owner: str, coming: Set[Request]) -> bool:
        """No more may wait for this owner. `coming`: those that are to be queued, and have their places already."""
        if not self.queue.full(self.num_free_rows - len(coming)):
            return False
        num_rows = self.num_free_rows + len(self.running)
        return self.queue.exceeds_share(owner, num_rows, itertools.chain(self.running, coming))

    def make(self, index: int, now: float) -> Flight | None:
        """The next plan; None when nothing can be computed now."""
        if self._steady is not None:
            repeated = self._repeat(self._steady, index)
            if repeated is not None:
                return repeated
        flight = Flight(Plan(index), left=self._budget)
        self._serve_running(flight)
        if not flight.preempted:
            self._admit_waiting(flight, now)
        if flight.long is not None:
            self._run_long(flight, flight.long)
        if not flight.items:
            assert not flight.admit and not flight.extend
            return None
        if len({item[2].num_tokens > 1 for item in flight.items}) == 2:
            flight.items.sort(key=lambda item: item[2].num_tokens > 1)
        run = tuple([item[2] for item in flight.items])
        masked = any(request.constraint is not None and each.samples for request, _, each, _ in flight.items)
        save = self._save(flight.items)
        flight.plan = Plan(
            index, tuple(self._release), tuple(flight.admit), tuple(flight.extend), (), run, save, masked
        )
        self._release = []
        counts = [each.num_tokens for each in run]
        flight.decodes = counts.count(1)
        flight.prompt_tokens = sum(counts) - flight.decodes
        self._steady = self._steady_after(flight)
        return flight

    def leave(self, request: Request) -> None:
        """Takes the request off its row or out of the queue and lets go of its blocks."""
        if request.row is None:
            self.queue.remove(request)
            return
        self._steady = None
        at = bisect_left(self.running, request.order, key=lambda r: r.order)
        assert self.running[at] is request
        del self.running[at]
        self._release.append(request.row)
        heapq.heappush(self._free_rows, request.row)
        self.tables.release(request)
        request.row = None

    def preempt(self, request: Request) -> None:
        """Back into the queue; it is computed anew from its tokens so far."""
        journal.preempted(request)
        self.unseat(request)
        self.queue.push(request)
        self._counters.preemptions += 1

    def unseat(self, request: Request) -> None:
        """Takes a running request off its row; whoever pushes it into the queue has it computed anew."""
        self.leave(request)
        request.restart()

    # --- steps like the one before

    def _steady_after(self, flight: Flight) -> _Steady | None:
        items = flight.items
        if len(items) != len(self.running) or flight.plan.admit:
            return None
        if not all(item[2].samples and item[2].num_tokens == 1 for item in items):
            return None
        steps_left = min(item[0].computable - item[0].num_computed for item in items)
        bound = [item[0] for item in items if item[0].constraint is not None]
        return _Steady(items, flight.plan.run, steps_left, bound)

    def _repeat(self, steady: _Steady, index: int) -> Flight | None:
        """The plan that `make` would come to, in a fraction of its time; None where it has something to decide."""
        if steady.steps_left <= 0 or (self._free_rows and len(self.queue)):
            self._steady = None
            return None
        if steady.bound and any(request.num_pending or request.is_held for request in steady.bound):
            self._steady = None
            return None
        size = self._block_size
        ending = [item[0] for item in steady.items if item[0].num_computed % size == 0]
        for request in ending:
            self.tables.leave_behind(request)
        full = [request for request in ending if request.num_computed == len(request.block_ids[0]) * size]
        if full and len(full) > self.tables.num_free:
            self._steady = None
            return None
        steady.steps_left -= 1
        extend = []
        for request in full:
            assert request.row is not None
            extend.append(Extend(request.row, self.tables.extend(request, 1)))
        filled = []
        for item in steady.items:
            request = item[0]
            request.num_computed = computed = request.num_computed + 1
            request.num_pending += 1
            request.last_plan = index
            if computed % size == 0:
                self.tables.register(request, confirmed=-1)
                filled.append(item)
        save = self._save(filled) if filled else ()
        plan = Plan(index, extend=tuple(extend), run=steady.run, save=save, masked=bool(steady.bound))
        return Flight(plan, steady.items, decodes=len(steady.items))

    # --- one step

    def _serve_running(self, flight: Flight) -> None:
        wanted = [request.remaining for request in self.running]
        decodes = wanted.count(1)
        short_waits = bool(self._free_rows) and self.queue.has_short
        short = short_waits or any(1 < count <= self._budget for count in wanted)
        long = max(wanted, default=0) > self._budget
        cap = flight.left
        if short or long or (self._free_rows and len(self.queue)):
            cap -= cap // 4
        chosen = None
        if decodes > cap:  # in turn, so that nobody is left out for good
            rows = [r for r, count in zip(self.running, wanted, strict=True) if count == 1]
            rows.sort(key=lambda r: r.last_plan)
            chosen = set(rows[:cap])
            decodes = cap
        if decodes:
            waiting = min(len(self.queue), len(self._free_rows)) + sum(count > 1 for count in wanted)
            flight.left = min(flight.left, decodes + self.pace.prompt_tokens(decodes, waiting))
        left = flight.left - decodes
        long_share = (left // 2 if short else left) if long else 0
        left -= long_share
        for request, count in zip(list(self.running), wanted, strict=True):
            if count <= 0 or request.row is None:  # nothing to do, or preempted by this very loop
                continue
            if count == 1:
                if chosen is None or request in chosen:
                    flight.left -= self._run(flight, request, self._grow(flight, request, 1))
            elif count <= self._budget:
                tokens = self._run(flight, request, self._grow(flight, request, min(count, left)))
                left -= tokens
                flight.left -= tokens
            elif flight.long is None:
                flight.long = request
                flight.long_tokens = self._grow(flight, request, long_share)
                flight.left -= flight.long_tokens

    def _grow(self, flight: Flight, request: Request, tokens: int, preempt: bool = True) -> int:
        """Gets blocks for the next `tokens` tokens, from running requests behind this one if need be. Returns how many
        tokens the blocks reach for, at most `tokens`: fewer when the request is the last one itself."""
        if tokens <= 0:
            return 0
        tables = self.tables
        tables.leave_behind(request)
        need = tables.blocks(request.num_computed + tokens) - len(request.block_ids[0])
        if need > 0:
            while preempt and tables.num_free < need and self.running[-1] is not request:
                self.preempt(self.running[-1])
                flight.preempted = True
            if count := min(need, tables.num_free):
                assert request.row is not None
                flight.extend.append(Extend(request.row, tables.extend(request, count)))
        return self._cut(request, min(tokens, tables.reach(request) - request.num_computed))

    def _cut(self, request: Request, tokens: int) -> int:
        checkpoints = self.tables.checkpoints
        return tokens if checkpoints is None or tokens <= 1 else checkpoints.cut(request, tokens)

    def _save(self, items: list[tuple[Request, int, Run, int]]) -> tuple[Save, ...]:
        """The checkpoints that runs of this plan leave. They can be found from the next plan on: in this one nobody
        can go on after them."""
        checkpoints, saved = self.tables.checkpoints, []
        if checkpoints is None:
            return ()
        for request, _, run, _ in items:
            if checkpoints.is_due(request.num_computed, run.samples):
                place = checkpoints.make(request, request.num_computed)
                if place is not None:
                    saved.append((request, Save(run.row, place)))
        for request, _ in saved:
            self.tables.settle(request, confirmed=-1)
        return tuple(save for _, save in saved)

    def _run(self, flight: Flight, request: Request, tokens: int) -> int:
        """Enters the request's next `tokens` tokens into the plan; returns them."""
        if tokens <= 0:
            return 0
        assert request.row is not None
        end = request.num_computed + tokens
        samples = end == request.num_tokens and end < request.limit
        run = Run(request.row, tokens, samples)
        request.num_computed = end
        request.last_plan = flight.plan.index
        self.tables.register(request, confirmed=-1)
        if samples:
            request.num_pending += 1
        flight.items.append((request, request.epoch, run, end))
        return tokens

    def _run_long(self, flight: Flight, request: Request) -> None:
        extra = min(flight.left, request.remaining - flight.long_tokens)
        tokens = self._grow(flight, request, flight.long_tokens + extra, preempt=False)
        self._run(flight, request, tokens)

    # --- admission

    def _admit_waiting(self, flight: Flight, now: float) -> None:
        if not self._free_rows or not len(self.queue):
            return
        tables = self.tables
        promised = [0] * len(tables.groups)  # blocks that running prompts still lack, and one more each to grow
        for running in self.running:
            promised = [sum(counts) + 1 for counts in zip(promised, tables.lacking(running), strict=True)]
        while flight.left > 0 and self._free_rows:
            request = self.queue.first(pass_long=False)
            if request is not None and flight.long is not None and _is_behind(request, flight.long):
                request = self.queue.first(pass_long=True)
            if request is None:
                break
            hit = tables.find(request)
            if not tables.fits(tables.cost(request, hit), promised):
                assert self.running, f"request {request.id} does not fit an empty pool"
                break
            self._admit(flight, request, hit, now)
            promised = [sum(counts) + 1 for counts in zip(promised, tables.lacking(request), strict=True)]

    def _admit(self, flight: Flight, request: Request, hit: Hit, now: float) -> None:
        self.queue.serve(request)
        self.tables.take(request, hit)
        request.num_computed = cached = self.tables.reach(request)
        request.row = heapq.heappop(self._free_rows)
        if request.first_scheduled is None:
            request.first_scheduled = now
            request.cached_tokens = cached
        if not request.needs_whole_prompt and self.tables.prefix.enabled:
            self._counters.prefix_queries += len(request.token_ids)
            self._counters.prefix_hits += cached
        self.running.insert(bisect_left(self.running, request.order, key=lambda r: r.order), request)
        long = flight.long is None and request.remaining > self._budget
        tokens = min(request.remaining, flight.left)
        if long and self.queue.has_short and self._free_rows:
            tokens = (flight.left + 1) // 2
        lacking = self.tables.blocks(cached + tokens) - hit.num_blocks
        self.tables.extend(request, min(lacking, self.tables.num_free))
        tokens = self._cut(request, min(tokens, self.tables.reach(request) - cached))
        flight.admit.append(self._admission(request, cached))
        flight.left -= tokens
        if long:
            flight.long, flight.long_tokens = request, tokens
        else:
            self._run(flight, request, tokens)

    def _admission(self, request: Request, cached: int) -> Admit:
        add = request.add
        assert request.row is not None
        return Admit(
            row=request.row,
            token_ids=tuple(request.token_ids),
            num_prompt_tokens=request.num_prompt,
            num_computed_tokens=cached,
            block_ids=tuple(map(tuple, request.block_ids)),
            params=request.params_for_worker(),
            seed=add.seed,
            stop_ids=tuple(add.stop_ids),
            bad_word_ids=tuple(map(tuple, add.bad_word_ids)),
            constrained=request.constraint is not None,
            pooling=add.pooling,
            checkpoint=request.checkpoint,
        )


def _is_behind(request: Request, long: Request) -> bool:
    """Whether a waiting request comes after the long one that is being computed; of another owner's new ones of the
    same priority each does, whenever it arrived."""
    is_new = request.first_scheduled is None
    if is_new and request.priority == long.priority and request.add.owner != long.add.owner:
        return True
    return request.order > long.order
