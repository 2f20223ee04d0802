"""Bodies of POST /v1/chat/completions: the request, the whole answer, the chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.errors import RequestError, Unsupported
from octavo.server.faces.openai.protocol.shared import (
    MAX_TOP_LOGPROBS,
    ChatLogprobs,
    GenerationRequest,
    NotYet,
    PromptLogprobs,
    Usage,
)
from octavo.types import FinishReason, Message, SamplingParams

MAX_TOOLS = 1024


class ChatMessage(Message, kw_only=True, omit_defaults=True):
    """A message as clients send it. What it holds beside these fields is for the model's template."""

    function_call: Annotated[dict[str, Any], Meta(description="Deprecated for tool_calls.")] | None = None
    refusal: str | None = None
    reasoning: Annotated[str, Meta(description="The same as reasoning_content.")] | None = None


class WrittenChatMessage(ChatMessage, kw_only=True, omit_defaults=True):
    """Never decoded as such: a body may not say what it was."""

    given: dict[str, Any] = msgspec.field(default_factory=dict)
    """The object in the body."""


class FunctionDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: Annotated[dict[str, Any], Meta(description="JSON Schema of the arguments.")] | None = None
    strict: Annotated[bool, Meta(description="Calls always follow the schema.")] | None = None


class ChatTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: Annotated[str, Meta(description="`function`.")] = "function"
    function: FunctionDefinition | None = None


class WrittenTool(ChatTool, frozen=True, kw_only=True, omit_defaults=True):
    """Never decoded as such."""

    given: dict[str, Any] = msgspec.field(default_factory=dict)
    """The object in the body."""


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=16384)]
    max_completion_tokens: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Wins over max_tokens.")] | None = None
    logprobs: Annotated[bool, Meta(description="Log-probabilities of the content's tokens.")] = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS, description="Needs logprobs: true.")] | None = None
    add_generation_prompt: Annotated[bool, Meta(description="Default: not continue_final_message.")] | None = None
    continue_final_message: Annotated[bool, Meta(description="Go on where the last message ends.")] = False
    chat_template_kwargs: Annotated[dict[str, Any], Meta(description="Switches of the model's template.")] | None = None
    reasoning_effort: (
        Annotated[str, Meta(description="none, minimal, low, medium, high …: how much the model reasons.")] | None
    ) = None
    thinking_token_budget: Annotated[int, Meta(ge=0, description="Most tokens of the reasoning.")] | None = None
    include_reasoning: Annotated[bool, Meta(description="Show the reasoning.")] = True
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Annotated[
            str | dict[str, Any],
            Meta(description='none, auto, required, or `{"type": "function", "function": {"name": …}}`.'),
        ]
        | None
    ) = None
    parallel_tool_calls: Annotated[bool, Meta(description="Several calls in one answer.")] | None = None
    functions: Annotated[list[FunctionDefinition], Meta(max_length=MAX_TOOLS, description="Deprecated.")] | None = None
    function_call: Annotated[str | dict[str, Any], Meta(description="Deprecated.")] | None = None
    modalities: Annotated[list[str], Meta(description="Only `text`.")] | None = None
    chat_template: NotYet = None
    documents: NotYet = None

    @property
    def by_functions(self) -> bool:
        """Tools go by their older name here, and so do calls in the answer. `tools` win over `functions`."""
        return self.tools is None and self.functions is not None

    def sampling(self, **changed: Any) -> SamplingParams:
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return super().sampling(max_tokens=max_tokens, logprobs=logprobs, **changed)

    def check(self) -> None:
        super().check()
        if self.modalities is not None and self.modalities != ["text"]:
            raise Unsupported("modalities other than ['text'] are not supported", param="modalities")
        if self.echo:
            raise Unsupported.about("echo", "is not supported for chat; use /v1/completions")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError.about("top_logprobs", "needs logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt cannot both be true", param="continue_final_message"
            )


class FunctionCall(msgspec.Struct, kw_only=True):
    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ResponseMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[MessageToolCall] | UnsetType = UNSET
    function_call: Annotated[FunctionCall, Meta(description="To a request with `functions`.")] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: Annotated[str, Meta(description="The same, as some clients call it.")] | UnsetType = UNSET


ChatFinishReason = FinishReason | Literal["function_call"]


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionCallDelta(msgspec.Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallChunk(msgspec.Struct, kw_only=True):
    """Id, type and name in the first of each index, then pieces of the arguments."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCallDelta


class ChatDelta(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallChunk] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: Annotated[list[int], Meta(description="In the first chunk.")] | UnsetType = UNSET
