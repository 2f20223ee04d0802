"""Owns everything the sampling of a row depends on, from admit to release; called by the runner alone.

Invariant: after admit(prompt + output so far) a row is in the same state as one that sampled that output here, so
preemption and restarts change no token. Order as in vLLM: the mask of a grammar, allowed_token_ids, bad words,
min_tokens and logit_bias, penalties, then Ops.sample. Log-probabilities are those of the logits before all of this.

What a mask excludes is never taken. Where the others exclude all that the mask leaves (allowed_token_ids, bad words,
min_tokens), the mask alone counts for this token, and penalties and logit_bias as little as they.

The host never waits for the device: which rows need what it knows by itself, and tells it through the queue; tokens,
counts and tables are the device's. `launch` reads nothing, `read` is given what came back. (prompt_logprobs waits.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.errors import EngineError
from octavo.kernels.ops import Ops
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.types import SamplingParams, TokenLogprobs
from octavo.wire.plan import Admit
from octavo.worker.queue import HostQueue, Queue
from octavo.worker.sampler.edits import FOREVER, MASKED, BadWords, LogitEdits
from octavo.worker.sampler.sampled import Draw, Sampled, listed
from octavo.worker.sampler.tables import VocabTables

_NOT_FINITE = (
    "the model computed logits that are not finite numbers (batch rows {}); its weights may be damaged or too large "
    "for this dtype"
)

# What a row needs beyond argmax; a step does only what one of its rows needs.
_NOISE, _PENALTIES, _EDITS, _BAD_WORDS, _ALLOWED, _LOGPROBS = 1, 2, 4, 8, 16, 32
_EXCLUDE = _EDITS | _BAD_WORDS | _ALLOWED

_ALIGNED = 4
"""Settings are gathered for a multiple of so many rows: every column then begins at 16 bytes, as kernels were compiled
for."""


class Sampler:
    """Rows are the worker's permanent rows; `sample` may be given any of them, in any order."""

    def __init__(
        self, ops: Ops, max_rows: int, vocab_size: int, device: torch.device | str, queue: Queue | None = None
    ) -> None:
        """`queue`: None on a CPU."""
        device, rows = torch.device(device), max_rows + 1
        self._ops = ops
        self.vocab_size = vocab_size
        self._queue = queue or HostQueue(device)
        self._needs = np.zeros(rows, np.uint8)
        self._special: set[int] = set()  # rows that need more than noise
        self._num_top = np.zeros(rows, np.int64)
        # One column per float setting: temperature, top_p, min_p, presence, frequency, repetition.
        self._floats = torch.zeros((rows, 6), dtype=torch.float32, device=device)
        # top_k, seed, output tokens so far.
        self._ints = torch.zeros((rows, 3), dtype=torch.int64, device=device)
        self._columns = self._floats.t(), self._ints.t()
        self._penalties = VocabTables(rows, vocab_size, (torch.int32, torch.bool), device)
        self._allowed = VocabTables(rows, vocab_size, (torch.bool,), device)
        self._edits = LogitEdits()
        self._bad_words = BadWords(rows, device)

    @property
    def settings(self) -> tuple[Tensor, Tensor]:
        """[rows + 1, n] f32 and int64, as kernels.recorded.PermanentRows has them; they never move. The last row is
        the padding of a batch, at temperature 0."""
        return self._floats, self._ints

    def is_plain(self, rows: list[int]) -> bool:
        """Whether temperature, top_k, top_p and min_p are all that matters to these rows' tokens."""
        return self._special.isdisjoint(rows)

    # --- admission

    def admit(self, admit: Admit) -> None:
        self.admit_all([admit])

    def admit_all(self, admits: Sequence[Admit]) -> None:
        """Puts requests on free rows. Settings that are None count as neutral."""
        if not admits:
            return
        rows = np.array([admit.row for admit in admits], np.int64)
        floats = np.array([_floats(admit.params) for admit in admits], np.float32)
        ints = np.array([(_or(a.params.top_k, 0), a.seed, len(_outputs(a))) for a in admits], np.int64)
        for admit in admits:
            self._needs[admit.row] = needs = self._admit_needs(admit)
            if needs & ~_NOISE:
                self._special.add(admit.row)
        there = self._queue.upload([rows, floats, ints])
        self._queue.launch(lambda: self._put(*there))
        self._admit_penalties([admit for admit in admits if self._needs[admit.row] & _PENALTIES])
        self._admit_allowed([admit for admit in admits if self._needs[admit.row] & _ALLOWED])
        self._admit_bad_words([admit for admit in admits if self._needs[admit.row] & _BAD_WORDS])

    def release(self, row: int) -> None:
        """The device hears of it when it matters: the row is in no step until it is admitted anew."""
        needs = int(self._needs[row])
        if needs & ~_NOISE:
            self._penalties.release(row)
            self._allowed.release(row)
            self._edits.release(row)
            self._bad_words.release(row)
        self._needs[row] = 0
        self._special.discard(row)

    def _put(self, rows: Tensor, floats: Tensor, ints: Tensor) -> None:
        self._floats.index_copy_(0, rows, floats)
        self._ints.index_copy_(0, rows, ints)

    def _admit_needs(self, admit: Admit) -> int:
        """What the row needs; its single edits are kept."""
        row, params = admit.row, admit.params
        needs = _NOISE if _or(params.temperature, 1.0) > 0 and params.top_k != 1 else 0
        if params.presence_penalty or params.frequency_penalty or _or(params.repetition_penalty, 1.0) != 1:
            needs |= _PENALTIES
        if params.allowed_token_ids is not None:
            needs |= _ALLOWED
        if any(len(word) > 1 for word in admit.bad_word_ids):
            needs |= _BAD_WORDS
        if params.logprobs is not None:
            needs |= _LOGPROBS
            self._num_top[row] = params.logprobs
        single = [word[0] for word in admit.bad_word_ids if len(word) == 1]
        bias = params.logit_bias or {}
        for tokens, values, until in (
            (list(bias), list(bias.values()), FOREVER),
            (single, [MASKED] * len(single), FOREVER),
            (admit.stop_ids, [MASKED] * len(admit.stop_ids), params.min_tokens),
        ):
            if tokens and until > len(admit.token_ids) - admit.num_prompt_tokens:
                needs |= _EDITS
                self._edits.add(row, tokens, values, until)
        return needs

    def _admit_penalties(self, admits: list[Admit]) -> None:
        if not admits:
            return
        tables = self._penalties
        claimed = [tables.claim(admit.row) for admit in admits]
        prompts = [
            tables.entries(at, a.token_ids[: a.num_prompt_tokens]) for at, a in zip(claimed, admits, strict=True)
        ]
        outputs = [tables.entries(at, _outputs(a)) for at, a in zip(claimed, admits, strict=True)]
        arrays = [np.array(claimed, np.int64), np.concatenate(prompts), np.concatenate(outputs)]
        places, seen_at, counted_at = self._queue.upload(arrays)

        def put() -> None:
            tables.clear(places)
            counts, seen = (table.view(-1) for table in tables.tables)
            seen.index_fill_(0, seen_at, True)
            counts.index_add_(0, counted_at, torch.ones_like(counted_at, dtype=counts.dtype))

        self._queue.launch(put)

    def _admit_allowed(self, admits: list[Admit]) -> None:
        if not admits:
            return
        tables = self._allowed
        claimed = [tables.claim(admit.row) for admit in admits]
        ids = [tables.entries(at, a.params.allowed_token_ids or []) for at, a in zip(claimed, admits, strict=True)]
        places, allowed_at = self._queue.upload([np.array(claimed, np.int64), np.concatenate(ids)])

        def put() -> None:
            tables.clear(places)
            tables.tables[0].view(-1).index_fill_(0, allowed_at, True)

        self._queue.launch(put)

    def _admit_bad_words(self, admits: list[Admit]) -> None:
        if not admits:
            return
        for admit in admits:
            self._bad_words.add(admit.row, [word for word in admit.bad_word_ids if len(word) > 1])
        tails = [self._bad_words.tail(_outputs(admit)) for admit in admits]
        there = self._queue.upload([np.array([a.row for a in admits], np.int64), np.array(tails, np.int64)])
        self._queue.launch(lambda: self._bad_words.put(*there))

    # --- a step

    def sample(
        self, rows: list[int], logits: Tensor, masks: Sequence[bytes | None] = ()
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """One token per row from logits [samples, vocab] f32, which may be overwritten; records the tokens as output
        of their rows. `masks`: none, or one for each row as wire/plan.py has them. Raises EngineError when a row's
        logits are not numbers, or its mask allows nothing."""
        sampled = self.launch(rows, logits, masks)
        return self.read(sampled, [tensor.cpu() for tensor in sampled.tensors()])

    def launch(self, rows: list[int], logits: Tensor, masks: Sequence[bytes | None] = ()) -> Sampled:
        """As `sample`, but nothing is read."""
        assert logits.shape == (len(rows), self.vocab_size), f"{tuple(logits.shape)} logits for {len(rows)} rows"
        return self._enter(self._prepare(rows, masks), logits)

    def _prepare(self, rows: list[int], masks: Sequence[bytes | None]) -> Draw:
        """Takes note of what the rows need now, and sends what the device has to know for it."""
        count, padding = len(rows), self._needs.shape[0] - 1
        settings_of = np.array(rows + [padding] * (-count % _ALIGNED), np.int64)
        places = settings_of[:count]
        needs_of = self._needs[places]
        needs = int(np.bitwise_or.reduce(needs_of))
        arrays: dict[str, NDArray[Any]] = {"settings_of": settings_of}
        bound = [i for i, mask in enumerate(masks) if mask is not None]
        if not (needs & ~_NOISE or bound):
            return Draw(rows, needs, self._queue.upload([settings_of])[0])
        if needs & _LOGPROBS:
            arrays["wanted"] = np.flatnonzero(needs_of & _LOGPROBS)
        if bound:
            words = np.frombuffer(bytearray().join(mask for mask in masks if mask is not None), np.int32)
            arrays["mask_words"] = words.reshape(len(bound), -1)
            arrays["mask_at"] = at = np.full(count, -1)
            at[bound] = np.arange(len(bound))
            if needs & _EXCLUDE:
                arrays["excluding"] = ((at >= 0) & ((needs_of & _EXCLUDE) != 0)).astype(np.int64)
        if needs & _ALLOWED:
            at = self._allowed.places(places)
            arrays["limited"] = np.flatnonzero(at >= 0)
            arrays["allowed_at"] = at[at >= 0]
        if needs & (_EDITS | _BAD_WORDS):
            arrays["place_of_row"] = place_of_row = np.full(self._needs.shape, -1, np.int64)
            place_of_row[places] = np.arange(len(rows))
        if needs & _PENALTIES:
            arrays["penalty_at"] = at = self._penalties.places(places)
            arrays["penalized"] = np.flatnonzero(at >= 0)
            arrays["counts_at"] = at[at >= 0] * self.vocab_size
        self._send_changed(needs)
        there = dict(zip(arrays, self._queue.upload([*arrays.values()]), strict=True))
        draw = Draw(rows, needs, there.pop("settings_of"), there)
        if needs & _LOGPROBS:
            draw.wanted.extend(arrays["wanted"].tolist())
            draw.num_top.extend(self._num_top[places[arrays["wanted"]]].tolist())
        return draw

    def _enter(self, draw: Draw, logits: Tensor) -> Sampled:
        """The device's work."""
        there, count = draw.there, len(draw.rows)
        if not count:
            return Sampled([], draw.settings_of)
        rows, wanted = draw.settings_of[:count], there.get("wanted")
        floats, ints = (each.index_select(1, draw.settings_of).narrow(1, 0, count) for each in self._columns)
        drawn, penalties = SamplingRows.from_columns(floats, ints), floats[3:].unbind(0)
        raw = logits.index_select(0, wanted) if wanted is not None else None
        if there:
            self._mask_and_edit(draw, penalties, logits)
        chosen = self._ops.sample(logits, drawn)
        self._columns[1][2].index_copy_(0, rows, drawn.indices.add_(1))
        if not draw.needs & ~_NOISE:
            return Sampled(draw.rows, chosen)
        taken = chosen.clamp_min(0)  # what is not a token must not become a place in memory
        if draw.needs & _PENALTIES:
            at = there["counts_at"] + taken.index_select(0, there["penalized"])
            counts = self._penalties.tables[0].view(-1)
            counts.index_add_(0, at, torch.ones_like(at, dtype=counts.dtype))
        if draw.needs & _BAD_WORDS:
            self._bad_words.record(rows, taken)
        if raw is None or wanted is None:
            return Sampled(draw.rows, chosen)
        logprobs = self._scores(raw, taken.index_select(0, wanted), max(draw.num_top))
        return Sampled(draw.rows, chosen, logprobs, draw.wanted, draw.num_top)

    def read(self, sampled: Sampled, tensors: Sequence[Tensor]) -> tuple[list[int], list[TokenLogprobs | None]]:
        """What `sample` returns, from sampled.tensors() on the host."""
        token_ids: list[int] = tensors[0].tolist()
        self.check(sampled.rows, token_ids)
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        if sampled.wanted:
            ids = [token_ids[i] for i in sampled.wanted]
            for i, entry in zip(sampled.wanted, listed(ids, sampled.num_top, tensors[1:]), strict=True):
                logprobs[i] = entry
        return token_ids, logprobs

    def check(self, rows: list[int], token_ids: list[int]) -> None:
        """Raises EngineError when one of the tokens sampled for `rows` is -1: its logits were not numbers."""
        if token_ids and min(token_ids) < 0:
            bad = [row for row, token_id in zip(rows, token_ids, strict=True) if token_id < 0]
            raise EngineError(_NOT_FINITE.format(bad))

    def prompt_logprobs(self, logits: Tensor, next_token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
        """logits [positions, vocab] f32 and the prompt token that followed each position."""
        (ids,) = self._queue.upload([np.array(next_token_ids, np.int64)])
        scores = [each.cpu() for each in self._scores(logits, ids, num_top)]
        return listed(next_token_ids, [num_top] * len(next_token_ids), scores)

    # --- parts of a step

    def _scores(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._ops.logprobs(logits, token_ids, min(num_top, self.vocab_size))

    def _send_changed(self, needs: int) -> None:
        for edits, need in ((self._edits, _EDITS), (self._bad_words, _BAD_WORDS)):
            if needs & need and edits.changed:
                self._queue.launch(partial(edits.take, self._queue.upload(edits.news())))
                edits.changed = False

    def _mask_and_edit(self, draw: Draw, penalties: Sequence[Tensor], logits: Tensor) -> None:
        """`penalties`: presence, frequency, repetition, [samples] f32."""
        there = draw.there
        if "mask_words" in there:
            self._ops.mask(logits, there["mask_at"], there["mask_words"])
        if "excluding" not in there:
            self._edit(draw, penalties, logits)
            return
        masked = logits.clone()
        self._edit(draw, penalties, logits)
        nothing_left = (logits.amax(-1) <= MASKED / 2) & (there["excluding"] > 0)
        torch.where(nothing_left.unsqueeze(-1), masked, logits, out=logits)

    def _edit(self, draw: Draw, penalties: Sequence[Tensor], logits: Tensor) -> None:
        there, needs = draw.there, draw.needs
        if needs & _ALLOWED:
            limited = there["limited"]
            excluded = self._allowed.tables[0].index_select(0, there["allowed_at"]).logical_not_()
            logits.index_copy_(0, limited, logits.index_select(0, limited).masked_fill_(excluded, -torch.inf))
        if needs & _BAD_WORDS:
            self._bad_words.apply(there["place_of_row"], logits)
        if needs & _EDITS:
            self._edits.apply(there["place_of_row"], self._ints[:, 2], logits)
        if needs & _PENALTIES:
            self._ops.penalize(logits, PenaltyRows(there["penalty_at"], *self._penalties.tables, *penalties))


def _floats(params: SamplingParams) -> tuple[float, ...]:
    return (
        _or(params.temperature, 1.0), _or(params.top_p, 1.0), _or(params.min_p, 0.0),
        params.presence_penalty, params.frequency_penalty, _or(params.repetition_penalty, 1.0),
    )  # fmt: skip


def _outputs(admit: Admit) -> tuple[int, ...]:
    return admit.token_ids[admit.num_prompt_tokens :]


def _or(value: float | int | None, neutral: float | int) -> float | int:
    return neutral if value is None else value
