"""A model without tensors, for tests of the engine: what its pages hold and what it samples are pure functions.

A page's slot holds a digest of the whole history up to its token, made from the digest that is *read through the row's
block table* for the token before. So a page shared wrongly, overwritten, or never computed spoils every later token of
its reader, just as wrong keys and values would; `expected` says what an unspoiled request gives.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from octavo.client.fake import write_byte_tokenizer
from octavo.executor.base import StepFailed
from octavo.grammar.matcher import Vocabulary
from octavo.modelfiles.files import ModelFiles
from octavo.types import TokenLogprobs
from octavo.wire.messages import Add
from octavo.wire.plan import Admit, Masks, Plan, Result, Run, WorkerInfo

VOCAB = 997
START = 1


def digest(before: int, token: int) -> int:
    return hash((before, token))


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


def expected(add: Add, max_len: int) -> tuple[list[int], str]:
    """All output tokens (those of `output_ids` too) and the finish reason."""
    history = START
    for token in add.prompt_ids:
        history = digest(history, token)
    output: list[int] = []
    limit = max_len - len(add.prompt_ids)
    if add.params.max_tokens is not None:
        limit = min(limit, add.params.max_tokens)
    matcher = None if add.grammar is None else vocabulary().matcher(add.grammar, add.stop_ids)
    while len(output) < limit:
        mask = None if matcher is None else matcher.mask()
        if matcher is not None and matcher.is_finished:
            return output, "stop"
        token = sample(history, add.seed, add.stop_ids, len(output) < add.params.min_tokens, mask)
        output.append(token)
        history = digest(history, token)
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
    blocks: list[int]
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

    def __init__(self, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, depth: int = 1) -> None:
        self.depth = depth
        self.fail_next = False
        self.plans: deque[Plan] = deque()
        self._masks: deque[Masks] = deque()
        self.num_steps = 0
        self.num_shared_in_step = 0
        self.history: list[Plan] = []
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._budget = budget
        self._num_blocks = num_blocks
        self._slots: dict[int, int] = {}
        self._rows: dict[int, _Row] = {}
        self._tolerant = 0  # plans still in flight when one failed

    def start(self) -> WorkerInfo:
        return WorkerInfo(
            num_blocks=self._num_blocks,
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
            raise StepFailed(f"step {plan.index}")
        self._compute(plan)
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
            self._rows[admit.row] = _Row(admit, list(admit.token_ids), admit.num_computed_tokens, list(admit.block_ids))
        for extend in plan.extend:
            self._rows[extend.row].blocks += extend.block_ids
        assert plan.run, "an empty plan"
        assert len({run.row for run in plan.run}) == len(plan.run), "a row runs twice"
        assert sum(run.num_tokens for run in plan.run) <= self._budget
        assert all(run.num_tokens > 0 for run in plan.run)

    def _slot(self, row: _Row, position: int) -> int:
        return row.blocks[position // self._block_size] * self._block_size + position % self._block_size

    def _compute(self, plan: Plan) -> None:
        """Writes the slots of all runs; one that reads what another writes in this step goes after it."""
        runs = deque(self._rows[run.row] for run in plan.run)
        counts = {id(self._rows[run.row]): run.num_tokens for run in plan.run}
        unwritten: set[int] = set()
        for row in runs:
            slots = [self._slot(row, row.computed + i) for i in range(counts[id(row)])]
            assert unwritten.isdisjoint(slots), "two rows write one slot"
            unwritten.update(slots)
        tries = 0
        while runs:
            row = runs.popleft()
            before = START if row.computed == 0 else None
            if row.computed > 0:
                slot = self._slot(row, row.computed - 1)
                if slot in unwritten:
                    tries += 1
                    assert tries < 10_000, "rows wait for each other"
                    self.num_shared_in_step += 1
                    runs.append(row)
                    continue
                before = self._slots.get(slot, -1)
            assert before is not None
            for position in range(row.computed, row.computed + counts[id(row)]):
                token = row.tokens[position] if position < len(row.tokens) and not row.broken else -1
                before = digest(before, token)
                self._slots[self._slot(row, position)] = before
                unwritten.discard(self._slot(row, position))

    def _finish_run(self, run: Run, mask: bytes | None, result: Found) -> None:
        index, row = run.row, self._rows[run.row]
        start, row.computed = row.computed, row.computed + run.num_tokens
        self._verify(row)
        if row.admit.params.prompt_logprobs is not None:
            stop = min(row.computed + 1, row.admit.num_prompt_tokens)
            result.prompt_logprobs[index] = [TokenLogprobs(t, -1.0, []) for t in row.tokens[start + 1 : stop]]
        if not run.samples:
            return
        assert mask is None or row.admit.constrained
        assert row.broken or row.computed == len(row.tokens), "samples before the row's end"
        output = len(row.tokens) - row.admit.num_prompt_tokens
        history = self._slots[self._slot(row, row.computed - 1)]
        token = sample(history, row.admit.seed, row.admit.stop_ids, output < row.admit.params.min_tokens, mask)
        row.tokens.append(token)
        result.tokens.append((token,))
        wanted = row.admit.params.logprobs is not None
        result.logprobs.append((TokenLogprobs(token, -0.5, []),) if wanted else None)

    def _verify(self, row: _Row) -> None:
        """Every row reads exactly its own history; after a failed step, once the plans in flight then are done."""
        if row.broken or self._tolerant:
            return
        assert row.computed <= len(row.tokens), "more computed than there is"
        history = START
        for position in range(row.computed):
            history = digest(history, row.tokens[position])
            assert self._slots[self._slot(row, position)] == history, f"position {position} holds another history"
