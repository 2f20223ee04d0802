"""The HTTP bodies of the OpenAI-compatible routes, each defined once: decoding, checks, /openapi.json derive from it.

Used by the handlers beside it and by server/docs.py. Requests derive from SamplingParams, so a sampling field is
defined in octavo/types.py alone; unknown fields are ignored, known ones that are not served yet are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.errors import RequestError, Unsupported
from octavo.types import FinishReason, Message, SamplingParams

NotYet = Annotated[Any, Meta(description="Not supported yet: a value is refused.")]

MAX_PROMPTS = 1024
MAX_STOP = 16
MAX_TOP_LOGPROBS = 20


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: Annotated[bool, Meta(description="A last chunk with the usage.")] = False
    continuous_usage_stats: Annotated[bool, Meta(description="Usage so far in every chunk.")] = False


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, Meta(description="Only `text` is supported yet.")]


class GenerationRequest(SamplingParams, frozen=True, kw_only=True, omit_defaults=True):
    """What chat and plain completions have in common."""

    model: Annotated[str, Meta(description="The served model's name; left out: that one.")] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: Annotated[bool, Meta(description="Completions: the answer begins with the prompt.")] = False
    user: str | None = None

    response_format: Annotated[ResponseFormat, Meta(description='`{"type": "text"}`.')] | None = None
    structured_outputs: NotYet = None
    guided_json: NotYet = None
    guided_regex: NotYet = None
    guided_choice: NotYet = None
    guided_grammar: NotYet = None
    guided_decoding_backend: NotYet = None
    grammar: NotYet = None
    json_schema: NotYet = None
    prompt_embeds: NotYet = None
    logits_processors: NotYet = None
    use_beam_search: NotYet = None
    truncate_prompt_tokens: NotYet = None

    def refused(self) -> tuple[str, ...]:
        """Names of the fields that change an answer and are not served yet."""
        return (
            "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
            "guided_decoding_backend", "grammar", "json_schema", "prompt_embeds", "logits_processors",
            "use_beam_search", "truncate_prompt_tokens",
        )  # fmt: skip

    def check(self) -> None:
        """What can be known without the model. Raises RequestError, Unsupported."""
        for name in self.refused():
            if getattr(self, name):
                raise Unsupported(f"{name} is not supported yet; leave it out", param=name)
        if self.response_format is not None and self.response_format.type != "text":
            kind = self.response_format.type[:40]
            message = f"response_format of type {kind!r} is not supported yet; only 'text' is"
            raise Unsupported(message, param="response_format")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options is only allowed with stream: true", param="stream_options")
        if len(self.stop_strings()) > MAX_STOP:
            raise RequestError(f"stop has {len(self.stop_strings())} strings; at most {MAX_STOP}", param="stop")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs are not given with stream: true", param="prompt_logprobs")
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(f"best_of ({self.best_of}) must be at least n ({self.n})", param="best_of")
        if self.stream and (self.best_of or 0) > self.n:
            raise RequestError("best_of cannot be combined with stream: true", param="best_of")
        for name, texts in (("stop", self.stop_strings()), ("bad_words", self.bad_words or [])):
            for text in texts:
                refuse_nul(text, name)

    def sampling(self, **changed: Any) -> SamplingParams:
        """The sampling fields of this request, some replaced."""
        fields = {name: getattr(self, name) for name in SamplingParams.__struct_fields__}
        return SamplingParams(**{**fields, **changed})


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=16384)]
    max_completion_tokens: Annotated[int, Meta(ge=0, description="Wins over max_tokens.")] | None = None
    logprobs: Annotated[bool, Meta(description="Log-probabilities of the content's tokens.")] = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS, description="Needs logprobs: true.")] | None = None
    add_generation_prompt: Annotated[bool, Meta(description="Default: not continue_final_message.")] | None = None
    continue_final_message: Annotated[bool, Meta(description="Go on where the last message ends.")] = False
    chat_template_kwargs: Annotated[dict[str, Any], Meta(description="Switches of the model's template.")] | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Annotated[Any, Meta(description="`none` and, without tools, `auto`.")] = None
    tools: NotYet = None
    functions: NotYet = None
    function_call: NotYet = None
    modalities: Annotated[list[str], Meta(description="Only `text`.")] | None = None
    audio: NotYet = None
    prediction: NotYet = None
    web_search_options: NotYet = None
    chat_template: NotYet = None
    documents: NotYet = None

    def refused(self) -> tuple[str, ...]:
        return (
            *super().refused(), "tools", "functions", "function_call", "audio", "prediction", "web_search_options",
            "chat_template", "documents",
        )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.tool_choice not in (None, "none", "auto"):
            raise Unsupported("tool_choice is not supported yet; leave it out or send 'none'", param="tool_choice")
        if self.modalities is not None and self.modalities != ["text"]:
            raise Unsupported("modalities other than ['text'] are not supported", param="modalities")
        if self.echo:
            raise Unsupported("echo is not supported for chat; use /v1/completions", param="echo")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt cannot both be true", param="continue_final_message"
            )


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/completions"""

    prompt: Annotated[str | list[str | int | list[int]], Meta(description="Text, token ids, or a list of either.")]
    max_completion_tokens: Annotated[int, Meta(ge=0, description="Wins over max_tokens (16).")] | None = None
    suffix: Annotated[Any, Meta(description="Not supported.")] = None
    add_special_tokens: Annotated[bool, Meta(description="Put BOS before a text prompt, if the model has one.")] = True
    length_penalty: NotYet = None

    def refused(self) -> tuple[str, ...]:
        return (*super().refused(), "suffix", "length_penalty")


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: Annotated[bool, Meta(description="Default: for a prompt, not for messages.")] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class TokenizeResponse(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    prompt: str


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int


class Performance(msgspec.Struct, kw_only=True):
    """Milliseconds, measured in the engine."""

    prefill_ms: float
    decode_ms: float
    decode_iterations: int
    tokens_per_second: float
    time_to_first_token_ms: float
    queue_ms: float


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    performance: Performance | UnsetType = UNSET


class TopLogprobEntry(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None


class LogprobEntry(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprobEntry]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    content: list[LogprobEntry]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, kw_only=True):
    logprob: float
    rank: Annotated[int, Meta(description="1 is the most likely; null beyond those asked for.")] | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ResponseMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A whole completion, and a chunk of a streamed one (`usage` as stream_options say)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


def refuse_nul(text: str, param: str) -> None:
    if "\0" in text:
        raise RequestError(f"{param} holds a NUL character, which no model's text has; remove it", param=param)
