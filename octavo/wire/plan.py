"""Engine ↔ worker: the one bridge between the control island (integers) and the tensor island.

A `Plan` is applied in the order of its fields: release, admit, extend, copies, run. A row is a permanent place
in the worker's batch, owned by one request from admit to release. There are no phases: each `Run` computes the
next `num_tokens` tokens of a row, starting at what is computed so far; when that reaches the row's last token
the row samples one more.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from octavo.types import Pooling, SamplingParams, TokenLogprobs


class Admit(msgspec.Struct, array_like=True, gc=False):
    """Puts a request on a row. `token_ids` = prompt + output so far (after preemption or restart)."""

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    """Tokens whose KV pages are already filled (prefix cache)."""
    block_ids: list[int]
    params: SamplingParams
    seed: int
    stop_ids: list[int]
    """Masked until min_tokens output tokens exist."""
    bad_word_ids: list[list[int]]
    constrained: bool = False
    """Each of its samples comes with a mask of the tokens that are allowed (Masks)."""
    pooling: Pooling | None = None
    """The hidden states of its tokens are pooled into an embedding."""


class Extend(msgspec.Struct, array_like=True, gc=False):
    """Appends pages to a row's block table."""

    row: int
    block_ids: list[int]


class Run(msgspec.Struct, array_like=True, gc=False):
    """Computes `num_tokens` tokens of a row; `samples`: this reaches the row's end and one token is sampled."""

    row: int
    num_tokens: int
    samples: bool


class BlockCopy(msgspec.Struct, array_like=True, gc=False):
    src: int
    dst: int


class Plan(msgspec.Struct, array_like=True, gc=False):
    index: int
    release: list[int] = []
    admit: list[Admit] = []
    extend: list[Extend] = []
    copies: list[BlockCopy] = []
    run: list[Run] = []


class Result(msgspec.Struct, array_like=True, gc=False):
    """What a plan produced. Lists are aligned with the plan's sampling `Run`s, in order."""

    index: int
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs | None] = []
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """row → log-probabilities of the prompt tokens that this plan's run predicted (token at position p+1
    for every computed position p inside the prompt), for rows that asked."""
    embeddings: dict[int, bytes] = {}
    """row → [hidden] f32, little-endian, for rows with `pooling` whose last prompt token this plan computed."""


Masks = Callable[[], list[bytes | None]]
"""Tells, once the logits are wanted, which tokens each sampling run of a plan may take, in the order of the runs: None
for any, else [ceil(vocab / 32)] 32-bit words, little-endian, bit i % 32 of word i // 32 set when token i is allowed.
It blocks until they are computed, which happens beside the forward pass."""


class WorkerInfo(msgspec.Struct, kw_only=True):
    """What the worker found out while loading and profiling."""

    num_blocks: int
    vocab_size: int
    max_model_len: int
    device: str
    dtype: str
    backend: str
    weights_bytes: int
    kv_bytes: int
    hidden_size: int = 0
    notes: list[str] = []
