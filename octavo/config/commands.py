"""The options that single commands have beside those of engine and server, each defined once as those are.

Sampling fields come from types.SamplingParams; the structs here only say which of them a command has, and with what
defaults. `seed` is left out of them: the engine's option of that name is the base from which requests get theirs.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.types import SamplingParams

_SAMPLING = {"temperature": "Sampling", "n": "Output", "logit_bias": "Sampling", "logprobs": "Output"}


class ServeSampling(SamplingParams, frozen=True, kw_only=True):
    """What `octavo serve` takes for requests that give none. Not what would change the form of an answer that a client
    expects, or whose request it is."""

    GROUPS: ClassVar[dict[str, str]] = {"temperature": "Sampling of requests that give none"}
    LEFT_OUT: ClassVar[frozenset[str]] = frozenset(
        (
            *("seed", "n", "best_of", "logprobs", "prompt_logprobs", "structured_outputs"),
            *("priority", "cache_salt", "session_id"),
        )
    )


class ChatSampling(SamplingParams, frozen=True, kw_only=True):
    """How `octavo chat` samples."""

    GROUPS: ClassVar[dict[str, str]] = _SAMPLING
    LEFT_OUT: ClassVar[frozenset[str]] = frozenset({"seed"})

    temperature: (
        Annotated[float, Meta(ge=0, le=100, description="0 is greedy; default: the model's own, else 0.7.")] | None
    ) = None
    min_p: (
        Annotated[
            float,
            Meta(
                ge=0,
                le=1,
                description="Drop tokens below this share of the top one; default: the model's own, else 0.1 where "
                "neither you nor the model limit tokens.",
            ),
        ]
        | None
    ) = None
    max_tokens: Annotated[int, Meta(ge=1, description="Most tokens of an answer.")] = 1024


class CompleteSampling(SamplingParams, frozen=True, kw_only=True):
    """How `octavo complete` samples."""

    GROUPS: ClassVar[dict[str, str]] = _SAMPLING
    LEFT_OUT: ClassVar[frozenset[str]] = frozenset({"seed"})

    temperature: Annotated[float, Meta(ge=0, le=100, description="0 is greedy.")] = 0.0
    max_tokens: Annotated[int, Meta(ge=0, description="Most tokens for a prompt.")] = 64


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `octavo chat` has for itself."""

    GROUPS: ClassVar[dict[str, str]] = {"system": "Conversation"}

    system: Annotated[str, Meta(description="System message to start with.")] | None = None
    chat_template_kwargs: (
        Annotated[
            dict[str, Any],
            Meta(description='Switches of the model\'s template, as {"enable_thinking": false}.'),
        ]
        | None
    ) = None
    history: Annotated[bool, Meta(description="Keep what you type for the next time, in a file only you can read.")] = (
        True
    )


class CompleteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `octavo complete` has for itself."""

    GROUPS: ClassVar[dict[str, str]] = {"prompts": "Prompts", "echo": "Output"}

    prompts: Annotated[str, Meta(description='Prompts, separated by "|".')] | None = None
    prompt_file: (
        Annotated[
            str,
            Meta(
                description="File with one prompt a line; - reads standard input.",
                extra={"metavar": "FILE", "path": True},
            ),
        ]
        | None
    ) = None
    batch: Annotated[int, Meta(ge=1, le=4096, description="Most prompts running at once; default: all.")] | None = None
    echo: Annotated[bool, Meta(description="Print the prompt before its completion.")] = True
    json: Annotated[bool, Meta(description="One JSON object a line, with everything that is known.")] = False


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `octavo engine` has for itself. `endpoint` must be given."""

    GROUPS: ClassVar[dict[str, str]] = {"endpoint": "Address", "log_level": "Logs and traces"}

    endpoint: (
        Annotated[str, Meta(description="Where servers attach: ipc://PATH of a Unix socket. Required.")] | None
    ) = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe message that is logged.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="text for people, json: one object a line.")] = (
        "text"
    )


_INPUT = Meta(ge=1, description="Tokens of a prompt.")
_OUTPUT = Meta(ge=1, description="Tokens to generate for each.")
_JSON = Meta(description="Write the figures there as JSON.", extra={"flag": "--json", "metavar": "FILE", "path": True})


class LatencyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of `octavo bench latency`."""

    GROUPS: ClassVar[dict[str, str]] = {"input_len": "Load", "json_file": "Output"}

    input_len: Annotated[int, _INPUT] = 512
    output_len: Annotated[int, _OUTPUT] = 128
    iterations: Annotated[int, Meta(ge=1, description="Measured runs after one warm-up.")] = 3
    json_file: Annotated[str, _JSON] | None = None


class ThroughputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of `octavo bench throughput`."""

    GROUPS: ClassVar[dict[str, str]] = {"num_prompts": "Load", "json_file": "Output"}

    num_prompts: Annotated[int, Meta(ge=1, description="Requests, all given at once.")] = 32
    input_len: Annotated[int, _INPUT] = 128
    output_len: Annotated[int, _OUTPUT] = 128
    json_file: Annotated[str, _JSON] | None = None


class ServeLoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of `octavo bench serve`."""

    GROUPS: ClassVar[dict[str, str]] = {"url": "Server", "num_prompts": "Load", "json_file": "Output"}

    url: Annotated[str, Meta(description="Base of an OpenAI-compatible server.")] = "http://127.0.0.1:8000"
    model: Annotated[str, Meta(description="Name of the model; default: the first that is served.")] | None = None
    api_key: Annotated[
        tuple[str, ...], Meta(description="Key to send; the first where there are several.", extra={"secret": True})
    ] = ()
    num_prompts: Annotated[int, Meta(ge=1, description="Requests in all.")] = 64
    input_len: Annotated[int, _INPUT] = 128
    output_len: Annotated[int, _OUTPUT] = 128
    max_concurrency: Annotated[int, Meta(ge=1, description="Most requests at once; default: all.")] | None = None
    request_rate: Annotated[float, Meta(ge=0.001, description="Requests a second; default: all at once.")] | None = None
    json_file: Annotated[str, _JSON] | None = None


class RemoveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of `octavo rm`."""

    force: Annotated[bool, Meta(description="Also while a server of yours serves it.")] = False


class TableOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of `octavo list`, `ps` and `show`."""

    json: Annotated[bool, Meta(description="As JSON, for scripts.")] = False


EVERY = (
    *(ServeSampling, ChatSampling, ChatOptions, CompleteSampling, CompleteOptions, EngineOptions),
    *(LatencyOptions, ThroughputOptions, ServeLoadOptions, RemoveOptions, TableOptions),
)
"""For whoever has to know all names: of keys in a config file, of OCTAVO_… in the environment."""


def plain(params: SamplingParams) -> SamplingParams:
    """The same values without a command's own defaults: what is left out on the wire means the defaults of all."""
    return SamplingParams(**{name: getattr(params, name) for name in SamplingParams.__struct_fields__})
