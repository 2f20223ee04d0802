"""Client ↔ engine messages: MessagePack over a socket, or plain objects in one process.

Every request ends in exactly one final message: a `TokenOutput` with `finish_reason`, or a `Failed`.
After an `Abort` nothing more is sent for that id. Ids are chosen by the client, unique within it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.types import FinishReason, Metrics, Pooling, SamplingParams, TokenLogprobs

PROTOCOL_VERSION = 4
VERSION_MISMATCH = "version_mismatch"
"""Code of the Failed that answers a Hello of another protocol."""
MAX_MESSAGE_BYTES = 64 << 20


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """First message of a client; answered by `Welcome`, once the model is ready."""

    version: int = PROTOCOL_VERSION


class Add(msgspec.Struct, tag="add", array_like=True, frozen=True):
    """One sequence to generate. All defaults are resolved: params hold concrete values.

    `output_ids` are tokens already generated before an engine restart: they are computed like a prompt
    but count as output (max_tokens, penalties, noise index, min_tokens).
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    stop_ids: list[int] = []
    bad_word_ids: list[list[int]] = []
    output_ids: list[int] = []
    grammar: str | None = None
    """What the output must match, as grammar/spec.py writes it; `params.structured_outputs` is None here."""
    pooling: Pooling | None = None
    """An embedding is wanted instead of tokens; max_tokens is 0 then."""
    request_id: str = ""
    """The HTTP request's, for the log alone."""
    owner: str = ""
    """Whose request it is: what takes long is done in turn for each."""
    hard_grammar: bool = False
    """Its grammar took long to be checked."""
    key: str = ""
    """The client's own for the request, the same for all its sequences and whenever they are sent again: by it an
    engine knows what the one before broke of."""


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    ids: list[int]


class Ping(msgspec.Struct, tag="ping", array_like=True, frozen=True):
    """Asks for a Pong, every HEARTBEAT_S. No sign of life: a peer is alive while its connection stands."""


class Bye(msgspec.Struct, tag="bye", array_like=True, frozen=True):
    """The client leaves in good order: its requests are aborted at once."""


ToEngine = Hello | Add | Abort | Ping | Bye

HEARTBEAT_S = 0.5
QUIET_S = 3.0
"""A peer that has said nothing for so long is worth a line in the log, and no more: it may be stopped, or busy."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a client must know of an engine. `instance` differs after every restart."""

    instance: str
    pid: int
    model: str
    """The name under which the model is served, and which answers say."""
    aliases: tuple[str, ...] = ()
    """Further names that requests may say."""
    model_path: str
    """Address (modelfiles.files) of the folder or .gguf file whose tokenizer and templates the client loads."""
    max_model_len: int
    max_num_seqs: int
    block_size: int
    num_blocks: int
    vocab_size: int
    hidden_size: int = 0
    """Numbers in an embedding."""
    device: str
    dtype: str
    backend: str
    max_queued_requests: int
    seed: int | None = None
    """Base of the seeds of requests that give none, when the engine was given one."""


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    version: int
    info: EngineInfo


class TokenOutput(msgspec.Struct, array_like=True, gc=False):
    """New tokens of one request. `finish_reason` set: final. `stop_reason`: the stop token id that ended it
    (the stop token itself is among token_ids; clients do not show it as text)."""

    id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    metrics: Metrics | None = None
    """With the first token (so far) and with the final message (complete)."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """With the first token, when asked for: one per prompt token, the first None."""
    embedding: bytes | None = None
    """With the final message of a request with `pooling`: [hidden] f32, little-endian."""


class Outputs(msgspec.Struct, tag="outputs", array_like=True, gc=False):
    """All outputs of one step for one client."""

    items: list[TokenOutput]


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """Final message of a request that cannot be finished; `code` as in errors.py."""

    id: int
    code: str
    message: str
    param: str | None = None


class Counters(msgspec.Struct, kw_only=True):
    """What an engine has counted since its start. Those with a title are told by /metrics, under that name."""

    prefix_queries: Annotated[
        int, Meta(title="prefix_cache_queries", description="Prompt tokens looked up in the prefix cache")
    ] = 0
    prefix_hits: Annotated[
        int, Meta(title="prefix_cache_hits", description="Prompt tokens found in the prefix cache")
    ] = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: Annotated[int, Meta(title="num_preemptions", description="Requests preempted")] = 0
    aborts: Annotated[int, Meta(title="engine_aborts", description="Sequences the engine aborted")] = 0
    steps: Annotated[int, Meta(title="engine_steps", description="Steps the engine has run")] = 0
    step_failures: Annotated[
        int, Meta(title="engine_step_failures", description="Steps that raised; the requests in them failed")
    ] = 0
    cpu_seconds: Annotated[
        float, Meta(title="engine_cpu_seconds", description="Processor time of the engine process")
    ] = 0.0
    grammar_evictions: Annotated[
        int, Meta(title="grammar_cache_evictions", description="Compiled grammars that made room for others")
    ] = 0


class Stats(Counters, kw_only=True):
    """The engine's counters and its gauges."""

    num_waiting: int = 0
    num_running: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    fragmentation: float = 0.0
    memory_mb: float = 0.0
    """Resident, of the engine's process."""
    grammar_bytes: int = 0
    """Of compiled grammars, followed or kept, with what following them has added."""
    grammars_kept: int = 0
    """Compiled grammars that are kept for the next request."""


class Pong(msgspec.Struct, tag="pong", array_like=True, frozen=True):
    """Answer to Ping."""

    instance: str
    stats: Stats


class Draining(msgspec.Struct, tag="draining", array_like=True, frozen=True):
    """The engine takes no new requests and ends when those it has are done."""


ToClient = Welcome | Outputs | Failed | Pong | Draining
