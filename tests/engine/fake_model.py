"""A model without tensors, for tests of the engine: what its pages hold and what it samples are pure functions.

A block's slot holds a digest of the whole history up to its token, made from the digest that is *read through the row's
block table* for the token before; in a group with a window, from all digests inside it. So a block shared wrongly,
overwritten, let go of too early, or never computed spoils every later token of its reader, just as wrong keys and
values would. A row's state is a digest of the whole history too, which only computing it from the first token on, or a
checkpoint, gives. `expected` says what an unspoiled request gives.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from octavo.client.fake import write_byte_tokenizer
from octavo.executor.base import StepFailed
from octavo.grammar.matcher import Vocabulary
from octavo.modelfiles.files import ModelFiles
from octavo.types import TokenLogprobs
from octavo.wire.messages import Add
from octavo.wire.plan import Admit, GroupInfo, Masks, Plan, Result, Run, WorkerInfo

VOCAB = 997
START = 1


def digest(before: int, token: int) -> int:
    return hash((before, token))


Groups = tuple[GroupInfo, ...]


def one_group(num_blocks: int = 64, block_size: int = 4) -> Groups:
    """All layers see all positions."""
    return (GroupInfo(num_blocks, block_size),)


def first_read(group: GroupInfo, position: int) -> int:
    """The first position whose slot is read for the token at `position`."""
    return max(position - 1 if group.window is None else position - group.window + 1, 0)


def written(group: GroupInfo, before: Sequence[int], token: int) -> int:
    """What the slot of a token holds. `before`: what is read for it."""
    if group.window is None:
        return digest(before[-1] if before else START, token)
    return hash((*before, token, group.window))


def next_state(state: int, token: int) -> int:
    return hash((state, token, "state"))


class History:
    """What the tokens of a sequence leave in each group, and in the state of a model that has one."""

    def __init__(self, groups: Groups, has_states: bool) -> None:
        self._groups, self._has_states = groups, has_states
        self.values: list[list[int]] = [[] for _ in groups]
        self.state = START

    def add(self, token: int) -> None:
        self.state = next_state(self.state, token)
        for group, values in zip(self._groups, self.values, strict=True):
            values.append(written(group, values[first_read(group, len(values)) :], token))

    @property
    def last(self) -> int:
        return together([values[-1] for values in self.values], self.state if self._has_states else None)


def together(values: list[int], state: int | None) -> int:
    """What is sampled from, of what the groups hold of the last token and of the state after it."""
    if state is not None:
        return hash((*values, state))
    return values[0] if len(values) == 1 else hash(tuple(values))


@cache
def vocabulary() -> Vocabulary:
    """Bytes, a few special tokens, and many ids that are no token's."""
    with tempfile.TemporaryDirectory() as folder:
        write_byte_tokenizer(Path(folder))
        return Vocabulary.load(ModelFiles("bytes", Path(folder)), VOCAB)


def bounded_vocabulary(cached_bytes: int) -> Vocabulary:
    """One of its own, that keeps so much of compiled grammars."""
    with tempfile.TemporaryDirectory() as folder:
        write_byte_tokenizer(Path(folder))
        return Vocabulary.load(ModelFiles("bytes", Path(folder)), VOCAB, cached_bytes=cached_bytes)


@lru_cache(1 << 12)
def tokens_of(mask: bytes) -> list[int]:
    return [token for token in range(VOCAB) if mask[token >> 3] >> (token & 7) & 1]


def sample(history: int, seed: int, stop_ids: Sequence[int], masked: bool, mask: bytes | None = None) -> int:
    """The token after `history`; about one in 16 is the first stop id. With a `mask` one that it allows."""
    value = hash((history, seed, 7))
    if mask is not None:
        allowed = tokens_of(mask)
        options = [token for token in allowed if not (masked and token in stop_ids)] or allowed
        return options[value // 16 % len(options)]
    token = stop_ids[0] if stop_ids and value % 16 == 0 else value // 16 % VOCAB
    while masked and token in stop_ids:
        token = (token + 1) % VOCAB
    return token


def expected(
    add: Add,
    max_len: int,
    groups: Groups = one_group(),  # noqa: B008
    has_states: bool = False,
) -> tuple[list[int], str]:
    """All output tokens (those of `output_ids` too) and the finish reason."""
    history = History(groups, has_states)
    for token in add.prompt_ids:
        history.add(token)
    output: list[int] = []
    limit = max_len - len(add.prompt_ids)
    if add.params.max_tokens is not None:
        limit = min(limit, add.params.max_tokens)
    matcher = None if add.grammar is None else vocabulary().matcher(add.grammar, add.stop_ids)
    while len(output) < limit:
        mask = None if matcher is None else matcher.mask()
        if matcher is not None and matcher.is_finished:
            return output, "stop"
        token = sample(history.last, add.seed, add.stop_ids, len(output) < add.params.min_tokens, mask)
        output.append(token)
        history.add(token)
        if token in add.stop_ids and len(output) >= add.params.min_tokens:
            return output, "stop"
        if matcher is not None:
            matcher.consume(token)
            if matcher.is_finished:
                return output, "stop"
    return output, "length"


@dataclass
class _Row:
    admit: Admit
    tokens: list[int]
    computed: int
    tables: list[list[int]]
    state: int = START
    broken: bool = False
    """Its last step failed: what it does until the next admission is worthless, and must not matter."""


@dataclass
class Found:
    """A Result to be."""

    tokens: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: list[tuple[TokenLogprobs, ...] | None] = field(default_factory=list)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)


class FakeExecutor:
    """Implements Executor. `fail_next` makes the next collected plan raise before anything is computed."""

    def __init__(
        self, groups: Groups, max_num_seqs: int, budget: int, depth: int = 1, num_checkpoints: int = 0
    ) -> None:
        self.depth = depth
        self.fail_next = False
        self.plans: deque[Plan] = deque()
        self._masks: deque[Masks] = deque()
        self.num_steps = 0
        self.num_shared_in_step = 0
        self.history: list[Plan] = []
        self.groups = groups
        self._block_size = groups[0].block_size
        self._max_num_seqs = max_num_seqs
        self._budget = budget
        self._slots: list[dict[int, int]] = [{} for _ in groups]
        self.num_checkpoints = num_checkpoints
        self._checkpoints: dict[int, int] = {}
        self.num_loaded = 0
        self._rows: dict[int, _Row] = {}
        self._tolerant = 0  # plans still in flight when one failed

    def start(self) -> WorkerInfo:
        return WorkerInfo(
            groups=self.groups,
            num_checkpoints=self.num_checkpoints,
            vocab_size=VOCAB,
            max_model_len=1 << 20,
            device="none",
            dtype="none",
            backend="fake",
            weights_bytes=0,
            kv_bytes=0,
        )

    def submit(self, plan: Plan) -> None:
        assert len(self.plans) < self.depth
        assert len(self._masks) == sum(plan.masked for plan in self.plans), "a plan went out before its masks"
        self.plans.append(plan)

    def masks(self, masks: Masks) -> None:
        plan = self.plans[-1]
        assert plan.masked and plan.index == masks.index
        assert len(masks.allowed) == sum(run.samples for run in plan.run)
        self._masks.append(masks)

    def shutdown(self) -> None:
        self.plans.clear()

    def collect(self) -> Result:
        plan = self.plans.popleft()
        masks = self._masks.popleft() if plan.masked else None
        self.history.append(plan)
        self.num_steps += 1
        self._apply(plan)
        if self.fail_next:
            self.fail_next = False
            self._tolerant = len(self.plans)
            for run in plan.run:
                self._rows[run.row].broken = True
            for save in plan.save:
                self._checkpoints[save.checkpoint] = -1
            raise StepFailed(f"step {plan.index}")
        self._compute(plan)
        self._save(plan)
        result = Found()
        allowed = iter([None] * len(plan.run) if masks is None else masks.allowed)
        for run in plan.run:
            self._finish_run(run, next(allowed) if run.samples else None, result)
        self._tolerant = max(self._tolerant - 1, 0)
        return Result(plan.index, tuple(result.tokens), tuple(result.logprobs), result.prompt_logprobs)

    def _apply(self, plan: Plan) -> None:
        for row in plan.release:
            del self._rows[row]
        for admit in plan.admit:
            assert 0 <= admit.row < self._max_num_seqs
            assert admit.row not in self._rows, "a row is admitted to before it is released"
            assert all(row in self._rows for row in range(admit.row)), "a lower row was free"
            assert admit.num_computed_tokens % self._block_size == 0
            assert admit.num_computed_tokens < len(admit.token_ids)
            tables = [list(ids) for ids in admit.block_ids]
            self._rows[admit.row] = row = _Row(admit, list(admit.token_ids), admit.num_computed_tokens, tables)
            assert (admit.checkpoint is not None) == bool(self.num_checkpoints and row.computed)
            if admit.checkpoint is not None:
                self.num_loaded += 1
                row.state = self._checkpoints[admit.checkpoint]
        for extend in plan.extend:
            for table, ids in zip(self._rows[extend.row].tables, extend.block_ids, strict=True):
                table += ids
        assert plan.run, "an empty plan"
        assert len({run.row for run in plan.run}) == len(plan.run), "a row runs twice"
        assert sum(run.num_tokens for run in plan.run) <= self._budget
        assert all(run.num_tokens > 0 for run in plan.run)

    def _save(self, plan: Plan) -> None:
        """After a row's run, at the end of a block, to a place of its own in this plan."""
        assert len({save.checkpoint for save in plan.save}) == len(plan.save), "two states saved in one place"
        counts = {run.row: run.num_tokens for run in plan.run}
        for save in plan.save:
            assert 0 <= save.checkpoint < self.num_checkpoints
            row = self._rows[save.row]
            assert row.broken or (row.computed + counts[save.row]) % self._block_size == 0
            self._checkpoints[save.checkpoint] = -1 if row.broken else row.state

    def _slot(self, group: int, row: _Row, position: int) -> int:
        return row.tables[group][position // self._block_size] * self._block_size + position % self._block_size

    def _read(self, group: int, row: _Row, position: int) -> list[int]:
        """Slots that are read for the token at `position`."""
        return [self._slot(group, row, at) for at in range(first_read(self.groups[group], position), position)]

    def _compute(self, plan: Plan) -> None:
        """Writes the slots of all runs but those of broken rows, which a worker leaves out; one that reads what another
        writes in this step goes after it."""
        runs = deque(row for run in plan.run if not (row := self._rows[run.row]).broken)
        counts = {id(self._rows[run.row]): run.num_tokens for run in plan.run}
        unwritten: set[tuple[int, int]] = set()
        for row in runs:
            for group in range(len(self.groups)):
                slots = {(group, self._slot(group, row, row.computed + i)) for i in range(counts[id(row)])}
                assert unwritten.isdisjoint(slots), "two rows write one slot"
                unwritten |= slots
        tries = 0
        while runs:
            row = runs.popleft()
            read = {(group, slot) for group in range(len(self.groups)) for slot in self._read(group, row, row.computed)}
            if not unwritten.isdisjoint(read):
                tries += 1
                assert tries < 10_000, "rows wait for each other"
                self.num_shared_in_step += 1
                runs.append(row)
                continue
            for position in range(row.computed, row.computed + counts[id(row)]):
                token = row.tokens[position] if position < len(row.tokens) else -1
                row.state = next_state(row.state, token)
                for group, slots in enumerate(self._slots):
                    before = [slots.get(slot, -1) for slot in self._read(group, row, position)]
                    here = self._slot(group, row, position)
                    slots[here] = written(self.groups[group], before, token)
                    unwritten.discard((group, here))

    def _finish_run(self, run: Run, mask: bytes | None, result: Found) -> None:
        index, row = run.row, self._rows[run.row]
        if row.broken:
            result.tokens += [(0,)] * run.samples
            result.logprobs += [None] * run.samples
            return
        start, row.computed = row.computed, row.computed + run.num_tokens
        self._verify(row)
        if row.admit.params.prompt_logprobs is not None:
            stop = min(row.computed + 1, row.admit.num_prompt_tokens)
            result.prompt_logprobs[index] = [TokenLogprobs(t, -1.0, []) for t in row.tokens[start + 1 : stop]]
        if not run.samples:
            return
        assert mask is None or row.admit.constrained
        assert row.computed == len(row.tokens), "samples before the row's end"
        output = len(row.tokens) - row.admit.num_prompt_tokens
        last = [slots[self._slot(group, row, row.computed - 1)] for group, slots in enumerate(self._slots)]
        state = row.state if self.num_checkpoints else None
        token = sample(
            together(last, state), row.admit.seed, row.admit.stop_ids, output < row.admit.params.min_tokens, mask
        )
        row.tokens.append(token)
        result.tokens.append((token,))
        wanted = row.admit.params.logprobs is not None
        result.logprobs.append((TokenLogprobs(token, -0.5, []),) if wanted else None)

    def _verify(self, row: _Row) -> None:
        """Every row reads exactly its own history; after a failed step, once the plans in flight then are done."""
        if self._tolerant:
            return
        assert row.computed <= len(row.tokens), "more computed than there is"
        history = History(self.groups, self.num_checkpoints > 0)
        for token in row.tokens[: row.computed]:
            history.add(token)
        assert row.state == history.state or not self.num_checkpoints, "the state of another history"
        for group, slots in enumerate(self._slots):
            first = 0 if self.groups[group].window is None else first_read(self.groups[group], row.computed)
            for position in range(first, row.computed):
                found = slots[self._slot(group, row, position)]
                assert found == history.values[group][position], f"position {position} holds another history"
