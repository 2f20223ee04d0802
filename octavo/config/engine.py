"""The options, each defined once: type, default, limits and help. Flags, environment, TOML, --help and docs derive
from these structs (config/flags.py). They are frozen; config/resolve.py turns them into the values in force.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

DEFAULT_MODEL = "smollm2-135m"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine loads and how it runs. `MODEL`: a folder, a .gguf file, a hub id or a demo name."""

    model: Annotated[str, Meta(description="Folder, .gguf file, hub id (org/name) or demo name.")] = DEFAULT_MODEL
    gguf_file: Annotated[str, Meta(description="The one .gguf file to take from a hub id.")] | None = None
    source: Annotated[Literal["huggingface", "modelscope"], Meta(description="Hub that ids are fetched from.")] = (
        "huggingface"
    )
    revision: Annotated[str, Meta(description="Branch, tag or commit of a hub id.")] | None = None
    device: Annotated[str, Meta(description="auto, cpu, cuda or cuda:N.", pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Annotated[Dtype, Meta(description="Type of weights and activations; auto: bfloat16.")] = "auto"
    max_model_len: (
        Annotated[int, Meta(ge=1, description="Longest sequence, prompt + output; default: the model's.")] | None
    ) = None
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096, description="Most sequences running at once.")] = 64
    max_num_batched_tokens: Annotated[int, Meta(ge=16, le=65536, description="Token budget of one step.")] = 512
    block_size: Annotated[int, Meta(ge=8, le=256, description="Tokens per KV page; a power of two.")] = 16
    kv_cache_memory: (
        Annotated[
            str, Meta(description="Memory for KV pages, as 512MiB or 4GiB; default: what the profile run leaves.")
        ]
        | None
    ) = None
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1, description="Share of GPU memory to use.")] = 0.9
    kv_cache_dtype: Annotated[
        Literal["auto", "int8", "fp8"], Meta(description="Type of the KV cache; auto: that of --dtype.")
    ] = "auto"
    isq: Annotated[str, Meta(description="Quantize the weights at load, e.g. q8_0, q4k, int4, fp8.")] | None = None
    prefix_cache: Annotated[bool, Meta(description="Reuse KV pages of equal prompt prefixes.")] = True
    max_queued_requests: Annotated[int, Meta(ge=0, description="Waiting requests before 429; 0: no limit.")] = 1024
    threads: Annotated[int, Meta(ge=1, description="CPU threads; default: the cores this process may use.")] | None = (
        None
    )
    seed: Annotated[int, Meta(description="Base of the seeds of requests that give none; default: random.")] | None = (
        None
    )
    watchdog_timeout: Annotated[float, Meta(gt=0, description="Seconds before a step that hangs ends the engine.")] = (
        60.0
    )
    served_model_name: Annotated[str, Meta(description="Name of the model in the API; default: from MODEL.")] | None = (
        None
    )


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server listens and behaves."""

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.")] = 8000
    connect: Annotated[str, Meta(description="Serve an engine that runs elsewhere: ipc://PATH.")] | None = None
    api_key: Annotated[str, Meta(description="Key that clients must send (not supported yet).")] | None = None
    drain_timeout: Annotated[float, Meta(ge=0, description="Seconds that running requests get at shutdown.")] = 30.0
    max_body_size: Annotated[str, Meta(description="Largest request body.")] = "32MiB"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe message that is logged.")
    ] = "info"
