"""Engine ↔ worker: the one bridge between the control island (integers) and the tensor island.

A `Plan` is applied in the order of its fields: release, admit, extend, copies, run, save. A row is a permanent place
in the worker's batch, owned by one request from admit to release. There are no phases: each `Run` computes the
next `num_tokens` tokens of a row, starting at what is computed so far; when that reaches the row's last token
the row samples one more.

All messages are frozen, and what they hold is too: they cross a process as they are, and a plan may share what it
holds with the one before.
"""

from __future__ import annotations

import msgspec

from octavo.cachespec import most_blocks
from octavo.types import Pooling, SamplingParams, TokenLogprobs


class Admit(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Puts a request on a row. `token_ids` = prompt + output so far (after preemption or restart)."""

    row: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_computed_tokens: int
    """Tokens that the caches hold already (prefix cache)."""
    block_ids: tuple[tuple[int, ...], ...]
    """Its table in each paged cache group: the block at i has the positions from i * block_size on. All are equally
    long; entries that a group's window has left behind are 0 and never read."""
    params: SamplingParams
    seed: int
    stop_ids: tuple[int, ...]
    """Masked until min_tokens output tokens exist."""
    bad_word_ids: tuple[tuple[int, ...], ...]
    constrained: bool = False
    """Each of its samples comes with a mask of the tokens that are allowed (Masks)."""
    pooling: Pooling | None = None
    """The hidden states of its tokens are pooled into an embedding."""
    checkpoint: int | None = None
    """Where the states are that its layers kept of the computed tokens; of a model with states, given where there are
    such tokens."""


class Extend(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Appends as many blocks to a row's table in each paged cache group."""

    row: int
    block_ids: tuple[tuple[int, ...], ...]


class Run(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Computes `num_tokens` tokens of a row; `samples`: this reaches the row's end and one token is sampled."""

    row: int
    num_tokens: int
    samples: bool
    draft: tuple[int, ...] = ()
    """Of a run that samples: what may follow the row's last token. It is computed behind that; as much of it as the row
    samples itself is taken, and one token more. The row has blocks for it, and it ends within max_model_len. Not for a
    model with a recurrent state, which has then gone on with what was not taken."""


class BlockCopy(msgspec.Struct, array_like=True, gc=False, frozen=True):
    src: int
    dst: int
    group: int = 0
    """The paged cache group."""


class Save(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Copies the states that a row has after its run to a checkpoint."""

    row: int
    checkpoint: int


class Plan(msgspec.Struct, array_like=True, gc=False, frozen=True):
    index: int
    release: tuple[int, ...] = ()
    admit: tuple[Admit, ...] = ()
    extend: tuple[Extend, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    run: tuple[Run, ...] = ()
    save: tuple[Save, ...] = ()
    masked: bool = False
    """`Masks` follow, before the next plan: a row that was admitted as constrained samples."""


class Masks(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Which tokens the samples of a plan may take. It follows the plan, so that masks are computed beside the model."""

    index: int
    """The plan's."""
    allowed: tuple[bytes | None, ...]
    """In the order of its samples, of a run with a draft one for each place: None for any token, else
    [ceil(vocab / 32)] 32-bit words, little-endian, bit i % 32 of word i // 32 set when token i is allowed."""


class Result(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a plan produced."""

    index: int
    tokens: tuple[tuple[int, ...], ...] = ()
    """Of each of the plan's runs that sample, in order: one, and before it as much of its draft as holds."""
    logprobs: tuple[tuple[TokenLogprobs, ...] | None, ...] = ()
    """Of `tokens`, for rows that asked."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """row → log-probabilities of the prompt tokens that this plan's run predicted (token at position p+1
    for every computed position p inside the prompt), for rows that asked."""
    embeddings: dict[int, bytes] = {}
    """row → [hidden] f32, little-endian, for rows with `pooling` whose last prompt token this plan computed."""

    @property
    def token_ids(self) -> list[int]:
        """All of `tokens`, one after the other."""
        return [token_id for of_run in self.tokens for token_id in of_run]


class GroupInfo(msgspec.Struct, frozen=True):
    """A cache group: the blocks of all layers that keep the same."""

    num_blocks: int
    block_size: int
    """Tokens."""
    window: int | None = None
    """Only so many last positions are ever looked at."""

    def most_blocks(self, num_tokens: int, at_once: int) -> int:
        """See cachespec."""
        return most_blocks(num_tokens, self.window, self.block_size, at_once)


class WorkerInfo(msgspec.Struct, kw_only=True):
    """What the worker found out while loading and profiling."""

    groups: tuple[GroupInfo, ...]
    """Paged cache groups."""
    num_checkpoints: int = 0
    """That there is room for, of the states of all layers that keep some; 0: none does."""
    vocab_size: int
    max_model_len: int
    device: str
    dtype: str
    backend: str
    weights_bytes: int
    kv_bytes: int
    hidden_size: int = 0
    notes: list[str] = []
