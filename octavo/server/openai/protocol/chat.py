"""Bodies of POST /v1/chat/completions: the request, the whole answer, the chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.errors import RequestError, Unsupported
from octavo.server.openai.protocol.shared import GenerationRequest, NotYet, PromptLogprobs, Usage
from octavo.types import FinishReason, Message

MAX_TOP_LOGPROBS = 20


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
    chat_template: NotYet = None
    documents: NotYet = None

    def refused(self) -> tuple[str, ...]:
        return (
            *super().refused(), "tools", "functions", "function_call", "chat_template", "documents",
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
