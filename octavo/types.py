"""Public value types, torch-free: what callers pass in and get back, on every face of Octavo.

`SamplingParams` is the one definition of the sampling fields; HTTP schemas, docs and the wire derive from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

FinishReason = Literal["stop", "length", "tool_calls", "abort"]
Pooling = Literal["mean", "last"]
"""How the hidden states of a prompt's tokens become its embedding."""


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the output must match: exactly one of `json`, `json_object`, `regex`, `choice` and `grammar`. Names as in
    vLLM. Enforced token by token (grammar/); what cannot be enforced is a RequestError."""

    json: Annotated[str | dict[str, Any] | bool | None, Meta(description="A JSON Schema, or its text.")] = None
    json_object: Annotated[bool | None, Meta(description="Any JSON object.")] = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    grammar: Annotated[str, Meta(description="EBNF, as GBNF (llama.cpp) or Lark.")] | None = None
    disable_any_whitespace: Annotated[bool, Meta(description="JSON without optional blanks.")] = False
    disable_additional_properties: Annotated[bool, Meta(description="Objects have the named properties only.")] = False
    whitespace_pattern: Annotated[str, Meta(description="Regex of the blanks allowed in JSON.")] | None = None
    structural_tag: Annotated[Any, Meta(description="Not supported: a value is refused.")] = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request is sampled. None means the model's default (generation_config), else the neutral value."""

    temperature: Annotated[float, Meta(ge=0, le=100, description="0 is greedy; default 1.")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1, description="Keep the smallest set of tokens with this mass.")] | None = (
        None
    )
    top_k: Annotated[int, Meta(ge=-1, description="Keep the k most likely tokens; 0 or -1 keeps all.")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1, description="Drop tokens below this share of the top one.")] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description="Taken once from tokens already generated.")] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="Taken per occurrence in the output.")] = 0.0
    repetition_penalty: (
        Annotated[float, Meta(ge=0.01, le=100, description="Divides logits of tokens in prompt and output.")] | None
    ) = None
    seed: (
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="Same seed, same tokens; negative: a random one.")]
        | None
    ) = None
    n: Annotated[int, Meta(ge=1, le=128, description="Choices per prompt.")] = 1
    best_of: Annotated[int, Meta(ge=1, le=128, description="Candidates, of which the n best are returned.")] | None = (
        None
    )
    max_tokens: (
        Annotated[int, Meta(ge=0, le=2**63 - 1, description="Most tokens to generate; clamped to the context.")] | None
    ) = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**63 - 1, description="No stop before so many tokens.")] = 0
    stop: str | Annotated[list[str], Meta(description="Texts at which the output ends, up to 16.")] | None = None
    stop_token_ids: (
        Annotated[list[int], Meta(max_length=1024, description="Ids of tokens at which the output ends.")] | None
    ) = None
    ignore_eos: Annotated[bool, Meta(description="Go on past the model's own end of the output.")] = False
    logit_bias: Annotated[dict[int, float], Meta(description="Added to the logits of token ids.")] | None = None
    bad_words: Annotated[list[str], Meta(max_length=1024, description="Words that are never written.")] | None = None
    allowed_token_ids: Annotated[list[int], Meta(description="The only ids that may be chosen.")] | None = None
    logprobs: (
        Annotated[int, Meta(ge=0, le=20, description="Top log-probabilities per token; 0: of the chosen only.")] | None
    ) = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20, description="The same for the tokens of the prompt.")] | None = (
        None
    )
    skip_special_tokens: Annotated[bool, Meta(description="Leave special tokens out of the text.")] = True
    include_stop_str_in_output: Annotated[bool, Meta(description="Keep the stop string that ended it.")] = False
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1, description="Lower runs first.")] = 0
    structured_outputs: (
        Annotated[
            StructuredOutputs, Meta(description="What the output must match: a schema, regex, choice or grammar.")
        ]
        | None
    ) = None
    cache_salt: (
        Annotated[str, Meta(min_length=1, max_length=256, description="Keeps cached prefixes apart.")] | None
    ) = None
    session_id: Annotated[str, Meta(max_length=256, description="Names the conversation.")] | None = None

    def stop_strings(self) -> list[str]:
        """The stop strings as a list, empty ones left out."""
        if self.stop is None:
            return []
        return [s for s in ([self.stop] if isinstance(self.stop, str) else self.stop) if s]


class Message(msgspec.Struct, omit_defaults=True):
    """One chat message. `content` is text, a list of parts, or None beside tool calls."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class WrittenMessage(Message, kw_only=True, omit_defaults=True):
    """A message with the object it was written as, for templates that read further keys, or print all in their order.
    The fields win over what `given` says of them."""

    given: dict[str, Any] = {}


class ToolCall(msgspec.Struct, kw_only=True):
    """One call that the model asks for; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """Part of the call at `index`: `id` and `name` with its first part, then pieces of the arguments' text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class TopLogprob(msgspec.Struct, array_like=True, frozen=True):
    token_id: int
    logprob: float


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Natural-log probability of one chosen token and the best alternatives, under the model's
    distribution before temperature and truncation (as vLLM's default). Never -inf: floor -9999.0."""

    token_id: int
    logprob: float
    top: list[TopLogprob]


class Metrics(msgspec.Struct, array_like=False, kw_only=True):
    """Timing of one request; milliseconds, measured in the engine (see API.md's `performance`)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the completion tokens; counted by the client."""
    cached_tokens: int = 0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    decode_iterations: int = 0
    tokens_per_second: float = 0.0
    time_to_first_token_ms: float = 0.0


class Delta(msgspec.Struct, kw_only=True, gc=False):
    """What one step added to one choice of a request. `token_ids`: all that came. `logprobs`: of the tokens whose text
    is shown by now, so that they join to the text; not of stop tokens and skipped special tokens."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = []
    reasoning: str = ""
    """Text of the reasoning channel; never part of `text`."""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One finished choice."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None


class RequestOutput(msgspec.Struct, kw_only=True):
    """All choices of one finished prompt. `text`, `token_ids`, `finish_reason` are those of the first choice."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: Metrics
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[0].finish_reason
