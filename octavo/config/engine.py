"""The options, each defined once: type, default, limits and help. Flags, environment, TOML, --help and docs derive
from these structs (config/flags.py). They are frozen; config/resolve.py turns them into the values in force.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.types import SamplingParams

DEFAULT_MODEL = "smollm2-135m"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine loads and how it runs. `MODEL`: a folder, a .gguf file, a hub id or a demo name.
    GROUPS: the fields at which a group of --help begins."""

    GROUPS: ClassVar[dict[str, str]] = {
        "model": "Model",
        "device": "Computing",
        "max_model_len": "Memory and batches",
        "attention_backend": "Computing",
        "prefix_cache": "Memory and batches",
        "threads": "Computing",
        "served_model_name": "Model",
    }

    model: Annotated[
        str, Meta(description="Folder, .gguf file, hub id (org/name) or demo name.", extra={"path": True})
    ] = DEFAULT_MODEL
    gguf_file: (
        Annotated[str, Meta(description="The one .gguf file to take from a hub id.", extra={"path": True})] | None
    ) = None
    source: Annotated[Literal["huggingface", "modelscope"], Meta(description="Hub that ids are fetched from.")] = (
        "huggingface"
    )
    revision: Annotated[str, Meta(description="Branch, tag or commit of a hub id.")] | None = None
    load_format: Annotated[
        Literal["auto", "dummy"],
        Meta(description="auto: the model's weights; dummy: random ones of its shapes, to measure speed without them."),
    ] = "auto"
    device: Annotated[
        str,
        Meta(
            description="auto, cpu, cuda or cuda:N; auto: a GPU that can be used.",
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            extra={"form": "auto, cpu, cuda or cuda:N, as cuda:0"},
        ),
    ] = "auto"
    dtype: Annotated[
        Dtype,
        Meta(
            description="Type of weights and activations; auto: float16 or float32 where the file's weights are, else "
            "bfloat16; float32: exact."
        ),
    ] = "auto"
    max_model_len: (
        Annotated[int, Meta(ge=1, description="Longest sequence, prompt + output; default: the model's.")] | None
    ) = None
    max_num_seqs: (
        Annotated[int, Meta(ge=1, le=4096, description="Most sequences running at once; default: 64, on a GPU 256.")]
        | None
    ) = None
    max_num_batched_tokens: (
        Annotated[int, Meta(ge=16, le=65536, description="Token budget of one step; default: 512, on a GPU 8192.")]
        | None
    ) = None
    block_size: Annotated[int, Meta(ge=8, le=256, description="Tokens per KV page; a power of two.")] = 16
    kv_cache_memory: (
        Annotated[
            str,
            Meta(
                description="Memory for KV pages, as 512MiB or 4GiB; default: on a GPU what --gpu-memory-utilization "
                "leaves; on a CPU, whose memory others need too, a quarter of what is free, at most 224MiB, at least "
                "one sequence of --max-model-len.",
                extra={"metavar": "SIZE"},
            ),
        ]
        | None
    ) = None
    gpu_memory_utilization: Annotated[
        float, Meta(gt=0, le=1, description="Share of GPU memory to use, what other processes use of it included.")
    ] = 0.9
    kv_cache_dtype: Annotated[
        Literal["auto", "int8", "fp8"],
        Meta(description="Type of the KV cache: int8 on the CPU, fp8 on a GPU; auto: that of --dtype."),
    ] = "auto"
    attention_backend: Annotated[
        Literal["auto", "flashinfer", "triton", "torch"],
        Meta(description="Who computes attention on a GPU; auto: the first that can, in this order."),
    ] = "auto"
    enforce_eager: Annotated[
        bool, Meta(description="On a GPU, run every step operation by operation, without CUDA graphs.")
    ] = False
    async_scheduling: Annotated[
        bool, Meta(description="On a GPU, prepare each step while the one before it is computed.")
    ] = True
    isq: (
        Annotated[str, Meta(description="Quantize the weights at load; not supported yet.", extra={"hidden": True})]
        | None
    ) = None
    prefix_cache: Annotated[bool, Meta(description="Reuse KV pages of equal prompt prefixes.")] = True
    state_checkpoint_interval: Annotated[
        int,
        Meta(
            ge=8,
            description="Of a model with recurrent layers: tokens between checkpoints of their states, after which "
            "equal prefixes go on; a multiple of --block-size. Others are where prompts end and where they part.",
        ),
    ] = 512
    max_queued_requests: Annotated[int, Meta(ge=0, description="Waiting requests before 429; 0: no limit.")] = 1024
    threads: Annotated[int, Meta(ge=1, description="CPU threads; default: the cores this process may use.")] | None = (
        None
    )
    seed: (
        Annotated[int, Meta(description="Base of the seeds of requests that give none; default, or negative: random.")]
        | None
    ) = None
    watchdog_timeout: Annotated[float, Meta(gt=0, description="Seconds before a step that hangs ends the engine.")] = (
        60.0
    )
    served_model_name: Annotated[
        tuple[str, ...],
        Meta(
            description="Names of the model in the API: the first is the one in answers, requests may say any; "
            "default: from MODEL."
        ),
    ] = ()
    """In Python one name may be a plain string."""

    def __post_init__(self) -> None:
        if isinstance(self.served_model_name, str):
            msgspec.structs.force_setattr(self, "served_model_name", (self.served_model_name,))


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server listens and behaves. GROUPS: as above."""

    GROUPS: ClassVar[dict[str, str]] = {
        "host": "Address",
        "api_key": "Access",
        "requests_per_minute": "Limits",
        "cors_origin": "Access",
        "ssl_certfile": "Address",
        "tool_call_parser": "Answers",
        "max_connections": "Limits",
        "log_level": "Logs and traces",
    }

    LEFT_OUT: ClassVar[frozenset[str]] = frozenset({"sampling"})

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.")] = 8000
    uds: (
        Annotated[str, Meta(description="Unix socket to listen on, instead of host and port.", extra={"path": True})]
        | None
    ) = None
    uds_mode: Annotated[
        Literal["600", "660", "666"],
        Meta(description="Who may use it: this user, its group too, or everybody on this machine."),
    ] = "600"
    connect: (
        Annotated[str, Meta(description="Serve an engine that runs elsewhere: ipc://PATH.", extra={"path": True})]
        | None
    ) = None
    api_key: Annotated[
        tuple[str, ...],
        Meta(
            description="Keys of which clients must send one, as KEY or 'NAME: KEY'; comma-separated or repeated.",
            extra={"secret": True},
        ),
    ] = ()
    api_key_file: (
        Annotated[
            str,
            Meta(description="File with one such key a line, named or not; # begins a comment.", extra={"path": True}),
        ]
        | None
    ) = None
    share_prefix_cache: Annotated[
        bool, Meta(description="Let requests with different API keys reuse each other's cached prefixes.")
    ] = False
    requests_per_minute: (
        Annotated[int, Meta(ge=1, description="POST requests a minute for each API key, or in all without keys.")]
        | None
    ) = None
    tokens_per_minute: (
        Annotated[int, Meta(ge=1, description="Prompt and output tokens a minute for each API key, or in all.")] | None
    ) = None
    max_inflight: (
        Annotated[int, Meta(ge=1, description="POST requests at once for each API key, or in all.")] | None
    ) = None
    cors_origin: Annotated[
        tuple[str, ...],
        Meta(description="Web pages that may call from a browser, as https://host:port; * is all."),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Without an API key: names in Host that are this server's beside its address and localhost; "
            "* is any."
        ),
    ] = ()
    ssl_certfile: (
        Annotated[str, Meta(description="Certificate chain (PEM): serve https.", extra={"path": True})] | None
    ) = None
    ssl_keyfile: (
        Annotated[str, Meta(description="Its private key (PEM), unless in the same file.", extra={"path": True})] | None
    ) = None
    ssl_ca_certs: (
        Annotated[
            str,
            Meta(description="Authorities (PEM) of whose certificates clients must show one.", extra={"path": True}),
        ]
        | None
    ) = None
    tool_call_parser: Annotated[
        str,
        Meta(description="Form in which the model writes tool calls: hermes, llama3_json …; auto: by its template."),
    ] = "auto"
    reasoning_parser: Annotated[
        str, Meta(description="Tags of the model's reasoning: think, mistral …; none; auto: by its template.")
    ] = "auto"
    max_connections: Annotated[int, Meta(ge=1, description="Connections at once; more are turned away.")] = 2048
    max_header_size: Annotated[str, Meta(description="Largest head of a request, and of any of its parts.")] = "64KiB"
    header_timeout: Annotated[float, Meta(gt=0, description="Seconds in which a request's head must come.")] = 15.0
    body_timeout: Annotated[float, Meta(gt=0, description="The same for its body, and 1 s more for each 16 KiB.")] = (
        30.0
    )
    send_timeout: Annotated[float, Meta(gt=0, description="Seconds a client may leave its answer unread.")] = 30.0
    keep_alive_timeout: Annotated[int, Meta(ge=1, description="Seconds before an idle connection is closed.")] = 30
    drain_timeout: Annotated[float, Meta(ge=0, description="Seconds that running requests get at shutdown.")] = 30.0
    max_body_size: Annotated[str, Meta(description="Largest request body, as 32MiB.", extra={"metavar": "SIZE"})] = (
        "32MiB"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe message that is logged.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="text for people, json: one object a line.")] = (
        "text"
    )
    access_log: Annotated[bool, Meta(description="One log line for each request.")] = True
    log_requests: Annotated[
        bool,
        Meta(
            description="Two more lines: what came in and what went out, sizes and times; texts at --log-level debug."
        ),
    ] = False
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Addresses or networks whose X-Forwarded-For or Forwarded names the client; unix: by socket."),
    ] = ()
    otlp_endpoint: (
        Annotated[str, Meta(description="Collector (OTLP over HTTP) for traces, as http://localhost:4318.")] | None
    ) = None
    sampling: SamplingParams = SamplingParams()
    """For requests that give none; its options are those of config/commands.py."""
