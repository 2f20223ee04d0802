"""Owns everything the sampling of a row depends on, from admit to release; called by the runner alone.

Invariant: after admit(prompt + output so far) a row is in the same state as one that sampled that output here, so
preemption and restarts change no token. Order as in vLLM: the mask of a grammar, allowed_token_ids, bad words,
min_tokens and logit_bias, penalties, then Ops.sample. Log-probabilities are those of the logits before all of this.

What a mask excludes is never taken. Where the others exclude all that the mask leaves (allowed_token_ids, bad words,
min_tokens), the mask alone counts for this token, and penalties and logit_bias as little as they.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.errors import EngineError
from octavo.kernels.ops import Ops
from octavo.types import SamplingParams, TokenLogprobs, TopLogprob
from octavo.wire.plan import Admit
from octavo.worker.sampler.edits import FOREVER, MASKED, BadWords, LogitEdits
from octavo.worker.sampler.tables import VocabTables

LOGPROB_FLOOR = -9999.0

_NOT_FINITE = (
    "the model computed logits that are not finite numbers (batch rows {}); its weights may be damaged or too large "
    "for this dtype"
)

# What a row needs beyond argmax; a step does only what one of its rows needs.
_NOISE, _PENALTIES, _EDITS, _BAD_WORDS, _ALLOWED, _LOGPROBS = 1, 2, 4, 8, 16, 32
_EXCLUDE = _EDITS | _BAD_WORDS | _ALLOWED


class Sampler:
    """Rows are the worker's permanent rows; `sample` may be given any of them, in any order."""

    def __init__(self, ops: Ops, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        device = torch.device(device)
        self._ops = ops
        self.vocab_size = vocab_size
        self._device = device
        self._needs = np.zeros(max_rows, dtype=np.uint8)
        self._special: set[int] = set()  # rows that need more than noise
        self._num_top = np.zeros(max_rows, dtype=np.int64)
        # One column per float setting: temperature, top_p, min_p, presence, frequency, repetition.
        self._floats = torch.zeros((max_rows, 6), dtype=torch.float32, device=device)
        # top_k, seed, output tokens so far.
        self._ints = torch.zeros((max_rows, 3), dtype=torch.int64, device=device)
        self._penalties = VocabTables(max_rows, vocab_size, (torch.int32, torch.bool), device)
        self._allowed = VocabTables(max_rows, vocab_size, (torch.bool,), device)
        self._edits = LogitEdits(max_rows, device)
        self._bad_words = BadWords(max_rows, device)

    def admit(self, admit: Admit) -> None:
        """Puts a request on a free row. Settings that are None count as neutral."""
        row, params = admit.row, admit.params
        prompt_ids = admit.token_ids[: admit.num_prompt_tokens]
        output_ids = admit.token_ids[admit.num_prompt_tokens :]
        temperature = _or(params.temperature, 1.0)
        repetition = _or(params.repetition_penalty, 1.0)
        top_k = _or(params.top_k, 0)
        self._floats[row] = torch.tensor(
            [temperature, _or(params.top_p, 1.0), _or(params.min_p, 0.0),
             params.presence_penalty, params.frequency_penalty, repetition]
        )  # fmt: skip
        self._ints[row] = torch.tensor([top_k, admit.seed, len(output_ids)])
        needs = _NOISE if temperature > 0 and top_k != 1 else 0
        if params.presence_penalty or params.frequency_penalty or repetition != 1:
            needs |= _PENALTIES
            counts, seen = self._penalties.claim(row)
            seen[torch.tensor(prompt_ids, dtype=torch.int64, device=self._device)] = True
            ids = torch.tensor(output_ids, dtype=torch.int64, device=self._device)
            counts.index_add_(0, ids, torch.ones_like(ids, dtype=counts.dtype))
        if params.allowed_token_ids is not None:
            needs |= _ALLOWED
            (allowed,) = self._allowed.claim(row)
            allowed[torch.tensor(params.allowed_token_ids, dtype=torch.int64, device=self._device)] = True
        needs |= self._admit_edits(row, params, admit, output_ids)
        if params.logprobs is not None:
            needs |= _LOGPROBS
            self._num_top[row] = params.logprobs
        self._needs[row] = needs
        if needs & ~_NOISE:
            self._special.add(row)

    def _admit_edits(self, row: int, params: SamplingParams, admit: Admit, output_ids: list[int]) -> int:
        needs = 0
        single = [word[0] for word in admit.bad_word_ids if len(word) == 1]
        for tokens, values, until in (
            (list(params.logit_bias or {}), list((params.logit_bias or {}).values()), FOREVER),
            (single, [MASKED] * len(single), FOREVER),
            (admit.stop_ids, [MASKED] * len(admit.stop_ids), params.min_tokens),
        ):
            if tokens and until > len(output_ids):
                needs |= _EDITS
                self._edits.add(row, tokens, values, until)
        longer = [word for word in admit.bad_word_ids if len(word) > 1]
        if longer:
            needs |= _BAD_WORDS
            self._bad_words.add(row, longer, output_ids)
        return needs

    def release(self, row: int) -> None:
        needs = int(self._needs[row])
        if needs & _PENALTIES:
            self._penalties.release(row)
        if needs & _ALLOWED:
            self._allowed.release(row)
        if needs & _EDITS:
            self._edits.release(row)
        if needs & _BAD_WORDS:
            self._bad_words.release(row)
        self._needs[row] = 0
        self._special.discard(row)

    @property
    def settings(self) -> tuple[Tensor, Tensor]:
        """[rows, n] f32 and int64, as kernels.recorded.PermanentRows has them; they never move."""
        return self._floats, self._ints

    def is_plain(self, rows: list[int]) -> bool:
        """Whether temperature, top_k, top_p and min_p are all that matters to these rows' tokens."""
        return self._special.isdisjoint(rows)

    def check(self, rows: list[int], token_ids: list[int]) -> None:
        """Raises EngineError when one of the tokens sampled for `rows` is -1: its logits were not numbers."""
        if token_ids and min(token_ids) < 0:
            bad = [row for row, token_id in zip(rows, token_ids, strict=True) if token_id < 0]
            raise EngineError(_NOT_FINITE.format(bad))

    def sample(
        self, rows: list[int], logits: Tensor, masks: Sequence[bytes | None] = ()
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """One token per row from logits [samples, vocab] f32, which may be overwritten; records the tokens as output
        of their rows. `masks`: none, or one for each row as wire/plan.py has them. Raises EngineError when a row's
        logits are not numbers, or its mask allows nothing."""
        if not rows:
            return [], []
        assert logits.shape == (len(rows), self.vocab_size), f"{tuple(logits.shape)} logits for {len(rows)} rows"
        places = np.asarray(rows)
        needs = int(np.bitwise_or.reduce(self._needs[places]))
        index = torch.from_numpy(places).to(self._device)
        wanted = np.flatnonzero(self._needs[places] & _LOGPROBS)
        raw = logits[torch.from_numpy(wanted).to(self._device)] if wanted.size else logits[:0]
        bound = [i for i, mask in enumerate(masks) if mask is not None]
        if bound:
            self._mask(bound, masks, logits)
        masked = logits[bound] if bound and needs & _EXCLUDE else None
        self._edit(needs, index, logits)
        if masked is not None:
            nothing_left = logits[bound].amax(-1) <= MASKED / 2
            logits[torch.tensor(bound, device=self._device)[nothing_left]] = masked[nothing_left]
        temperature, top_p, min_p = self._floats[index, :3].unbind(-1)
        top_k, seeds, num_outputs = self._ints[index].unbind(-1)
        chosen = self._ops.sample(logits, temperature, top_k, top_p, min_p, seeds, num_outputs)
        token_ids: list[int] = chosen.tolist()
        self.check(rows, token_ids)
        self._record(needs, index, chosen)
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        if wanted.size:
            tops = self._num_top[places[wanted]].tolist()
            chosen_ids = [token_ids[i] for i in wanted]
            for i, entry in zip(wanted, self._logprobs(raw, chosen_ids, tops), strict=True):
                logprobs[i] = entry
        return token_ids, logprobs

    def prompt_logprobs(self, logits: Tensor, next_token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
        """logits [positions, vocab] f32 and the prompt token that followed each position."""
        return self._logprobs(logits, next_token_ids, [num_top] * len(next_token_ids))

    def _mask(self, bound: list[int], masks: Sequence[bytes | None], logits: Tensor) -> None:
        joined = bytearray().join(mask for mask in masks if mask is not None)
        words = torch.frombuffer(joined, dtype=torch.int32).view(len(bound), -1).to(logits.device)
        places = torch.full((len(masks),), -1, device=logits.device)
        places[bound] = torch.arange(len(bound), device=logits.device)
        self._ops.mask(logits, places, words)

    def _edit(self, needs: int, rows: Tensor, logits: Tensor) -> None:
        if needs & _ALLOWED:
            held, at = self._allowed.find(rows)
            logits[held] = logits[held].masked_fill_(~self._allowed.tables[0][at], -torch.inf)
        if needs & _BAD_WORDS:
            self._bad_words.apply(rows, logits)
        if needs & _EDITS:
            self._edits.apply(rows, self._ints[rows, 2], logits)
        if needs & _PENALTIES:
            counts, seen = self._penalties.tables
            presence, frequency, repetition = self._floats[rows, 3:].unbind(-1)
            places = self._penalties.places(rows)
            self._ops.penalize(logits, places, counts, seen, presence, frequency, repetition)

    def _record(self, needs: int, rows: Tensor, chosen: Tensor) -> None:
        self._ints[rows, 2] += 1
        if needs & _PENALTIES:
            held, at = self._penalties.find(rows)
            self._penalties.tables[0][at, chosen[held]] += 1
        if needs & _BAD_WORDS:
            self._bad_words.record(rows, chosen)

    def _logprobs(self, logits: Tensor, token_ids: list[int], tops: list[int]) -> list[TokenLogprobs]:
        ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
        chosen, values, top_ids = self._ops.logprobs(logits, ids, min(max(tops, default=0), self.vocab_size))
        columns = (chosen.clamp_min(LOGPROB_FLOOR).tolist(), values.clamp_min(LOGPROB_FLOOR).tolist(), top_ids.tolist())
        return [
            TokenLogprobs(token_id, logprob, [TopLogprob(i, v) for i, v in zip(best[:n], value[:n], strict=True)])
            for token_id, n, logprob, value, best in zip(token_ids, tops, *columns, strict=True)
        ]


def _or(value: float | int | None, neutral: float | int) -> float | int:
    return neutral if value is None else value
