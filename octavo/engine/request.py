"""One sequence being generated, as the scheduler sees it: tokens so far, how many of them are computed, its pages.

Made and changed by the scheduler alone. Invariant: num_computed <= len(token_ids) + num_pending <= limit, where
`num_pending` counts sampled tokens whose plan is still in flight.
"""

from __future__ import annotations

import math
import re

import msgspec

from octavo.engine.blame import identity
from octavo.engine.constraint import Constraint
from octavo.types import FinishReason, Metrics, SamplingParams, TokenLogprobs
from octavo.wire.messages import Add, Failed

_FIELD = re.compile(r"\$\.(\w+)")
_FLOATS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


class Request:
    """See the module. `epoch` grows whenever what is in flight for this request stops to count."""

    __slots__ = (
        "add", "arrival", "block_ids", "branch", "cached_tokens", "checkpoint", "client", "computable",
        "constraint", "embedding", "epoch", "first_scheduled", "first_token", "id", "identity", "keys", "last_plan",
        "last_token", "limit", "num_computed", "num_left", "num_pending", "num_prompt", "num_registered", "order",
        "priority", "prompt_logprobs", "received", "root", "row", "saved", "stop_ids", "token_ids",
    )  # fmt: skip

    def __init__(self, client: bytes, add: Add, arrival: int, now: float, max_len: int, root: bytes) -> None:
        params = add.params
        self.client = client
        self.id = add.id
        self.identity = identity(add.key)
        self.add = add
        self.priority = params.priority
        self.arrival = arrival
        self.order = (params.priority, arrival)
        self.received = now
        self.stop_ids = frozenset(add.stop_ids)
        self.num_prompt = len(add.prompt_ids)
        self.token_ids: list[int] = [*add.prompt_ids, *add.output_ids]
        wanted = max_len if params.max_tokens is None else self.num_prompt + params.max_tokens
        self.limit = min(wanted, max_len)
        """Most tokens, prompt + output."""
        self.computable = self.limit - 1 if self.limit > self.num_prompt else self.limit
        """Most tokens that are ever computed: nothing follows the last output token."""
        self.num_computed = 0
        self.num_pending = 0
        self.block_ids: list[list[int]] = []
        """Its table in each paged cache group."""
        self.num_left: list[int] = []
        """Of each, the entries that the group's window has left behind."""
        self.checkpoint: int | None = None
        """That it went on after when it was admitted."""
        self.saved: list[tuple[int, int]] = []
        """(block, checkpoint after it) that it had made and that nobody can find yet, as tokens are unknown."""
        self.branch = 0
        """Tokens that it has in common with others, where no checkpoint was found."""
        self.row: int | None = None
        self.epoch = 0
        self.last_plan = -1
        self.root = root
        self.keys: list[bytes] = []
        self.num_registered = 0
        self.cached_tokens: int | None = None
        asked = params.prompt_logprobs is not None and not add.output_ids
        self.prompt_logprobs: list[TokenLogprobs | None] | None = [None] if asked else None
        """Gathered until they are sent with the first token; None: not wanted, or sent."""
        self.constraint: Constraint | None = None
        """What binds its output."""
        self.embedding: bytes | None = None
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens so far, those in flight included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def remaining(self) -> int:
        """Tokens that can be computed now. What may follow a token has to be known before the next one is sampled: a
        bound request waits for those in flight, and for a mask that takes long."""
        if self.constraint is not None and (self.num_pending or self.constraint.held):
            return 0
        return min(len(self.token_ids) + self.num_pending, self.computable) - self.num_computed

    @property
    def is_held(self) -> bool:
        """Its next token waits for a mask that takes long."""
        return self.constraint is not None and self.constraint.held

    @property
    def needs_whole_prompt(self) -> bool:
        """The logits, or the hidden states, of all of the prompt are wanted: nothing of it may be left out."""
        return self.prompt_logprobs is not None or self.add.pooling == "mean"

    def restart(self) -> None:
        """Forget what was computed: tokens so far become the prompt of the next admission."""
        self.epoch += 1
        self.num_computed = 0
        self.num_pending = 0
        self.num_registered = 0
        self.block_ids, self.num_left = [], []
        self.checkpoint, self.branch = None, 0
        self.row = None
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    def params_for_worker(self) -> SamplingParams:
        """Once the prompt's log-probabilities are sent they are not computed again."""
        params = self.add.params
        if params.prompt_logprobs is None or self.prompt_logprobs is not None:
            return params
        return msgspec.structs.replace(params, prompt_logprobs=None)

    def ending(self, computed: int) -> tuple[FinishReason, int | None] | None:
        """Whether the known tokens, `computed` of them for certain, end it: (finish_reason, stop_reason)."""
        if self.num_output > 0:
            token = self.token_ids[-1]
            if token in self.stop_ids and self.num_output >= self.add.params.min_tokens:
                return "stop", token
            if self.constraint is not None and self.constraint.is_finished:
                return "stop", token if token in self.stop_ids else None
            return ("length", None) if len(self.token_ids) >= self.limit else None
        return ("length", None) if computed >= self.limit else None

    def metrics(self) -> Metrics:
        """Timing so far; milliseconds."""
        started = self.received if self.first_scheduled is None else self.first_scheduled
        first = started if self.first_token is None else self.first_token
        last = first if self.last_token is None else self.last_token
        generated = self.num_output - len(self.add.output_ids)
        iterations = max(generated - 1, 0)
        decode = last - first
        seconds, counted = (decode, iterations) if decode > 0 else (last - started, generated)
        return Metrics(
            prompt_tokens=self.num_prompt,
            completion_tokens=self.num_output,
            cached_tokens=min(self.cached_tokens or 0, self.num_prompt),
            queue_ms=(started - self.received) * 1e3,
            prefill_ms=(first - started) * 1e3,
            decode_ms=decode * 1e3,
            decode_iterations=iterations,
            tokens_per_second=counted / seconds if seconds > 0 else 0.0,
            time_to_first_token_ms=(first - self.received) * 1e3,
        )


def _outside(ids: list[int], vocab_size: int) -> int | None:
    """The first id that is not a token's."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        return next(i for i in ids if not 0 <= i < vocab_size)
    return None


def _refused_ids(add: Add, vocab_size: int) -> Failed | None:
    params = add.params
    fields: list[tuple[str, list[int]]] = [
        ("prompt", add.prompt_ids),
        ("prompt", add.output_ids),
        ("stop_token_ids", add.stop_ids),
        ("logit_bias", list(params.logit_bias or ())),
        ("allowed_token_ids", params.allowed_token_ids or []),
        *(("bad_words", ids) for ids in add.bad_word_ids),
    ]
    for param, ids in fields:
        wrong = _outside(ids, vocab_size)
        if wrong is not None:
            message = f"{param}: token id {wrong} is outside the vocabulary (0 to {vocab_size - 1})"
            return Failed(add.id, "invalid_value", message, param)
    return None


def refused(add: Add, vocab_size: int, max_len: int) -> Failed | None:
    """Why this request cannot be taken. Clients check first (client/prepare.py); the engine believes nobody."""
    params = add.params
    if not add.prompt_ids:
        return Failed(add.id, "invalid_value", "prompt: is empty; give at least one token", "prompt")
    wants_output = params.max_tokens != 0
    if add.pooling is not None and wants_output:
        return Failed(add.id, "invalid_value", "max_tokens: must be 0 where an embedding is wanted", "max_tokens")
    if len(add.prompt_ids) + wants_output > max_len or len(add.prompt_ids) + len(add.output_ids) > max_len:
        message = f"the prompt has {len(add.prompt_ids)} tokens, the context holds {max_len}; shorten the prompt"
        return Failed(add.id, "context_length_exceeded", message, "prompt")
    numbers = [(name, getattr(params, name)) for name in _FLOATS]
    if isinstance(params.logit_bias, dict):
        numbers += [("logit_bias", value) for value in params.logit_bias.values()]
    for name, value in numbers:  # a NaN passes all limits
        if isinstance(value, float) and not math.isfinite(value):
            return Failed(add.id, "invalid_value", f"{name}: {value} is not a finite number", name)
    try:
        msgspec.convert(msgspec.to_builtins(params), SamplingParams)
    except msgspec.ValidationError as error:
        field = _FIELD.search(str(error))
        return Failed(add.id, "invalid_value", f"params: {error}", field and field[1])
    if not -(2**63) <= add.seed < 2**64:
        return Failed(add.id, "invalid_value", f"seed: {add.seed} does not fit 64 bits", "seed")
    return _refused_ids(add, vocab_size)
