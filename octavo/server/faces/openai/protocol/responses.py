"""Bodies of /v1/responses: the request, the response, its items, what is said of stored ones.

Items of the input stay plain JSON objects here: server/faces/openai/responses/items.py reads them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.errors import RequestError, Unsupported
from octavo.server.faces.openai.protocol.shared import MAX_STOP, MAX_TOP_LOGPROBS, Item, LogprobEntry, NotYet
from octavo.types import SamplingParams

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""Values of `include` that change an answer; others ask for things of tools that are not functions."""

MAX_ITEMS = 16384
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
Status = Literal["completed", "failed", "in_progress", "incomplete"]


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: Annotated[str, Meta(description="`text`, `json_object` or `json_schema`.")]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    format: TextFormat | None = None
    verbosity: Annotated[str, Meta(description="Accepted; changes nothing.")] | None = None


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: Annotated[str, Meta(description="For templates that know it; `none` switches thinking off.")] | None = None
    summary: Annotated[str, Meta(description="Accepted: the reasoning itself is in the answer.")] | None = None


class ResponsesRequest(SamplingParams, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/responses"""

    input: Annotated[
        str | Annotated[list[Item], Meta(max_length=MAX_ITEMS)],
        Meta(description="A text, or items: messages, calls and their outputs."),
    ]
    model: Annotated[str, Meta(description="The served model's name; left out: that one.")] | None = None
    instructions: Annotated[str, Meta(description="A system message before the input.")] | None = None
    previous_response_id: Annotated[str, Meta(description="Go on after this stored response.")] | None = None
    store: Annotated[bool, Meta(description="Keep the response for a while. Default: true.")] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    stream: bool = False
    stream_options: Annotated[dict[str, Any], Meta(description="Accepted; changes nothing.")] | None = None
    tools: Annotated[list[Item], Meta(max_length=1024, description="Functions; other tools are ignored.")] | None = None
    tool_choice: Annotated[Any, Meta(description="`none`, `auto`, `required`, a function, `allowed_tools`.")] = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(description="Of tools that are not functions: changes nothing.")] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: Annotated[list[str], Meta(description=f"`{LOGPROBS}`, `{ENCRYPTED}`; others change nothing.")] | None = (
        None
    )
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Annotated[Literal["auto", "disabled"], Meta(description="`auto` drops the oldest turns.")] | None = None
    metadata: Metadata | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(description="Switches of the model's template.")] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    background: Annotated[bool, Meta(description="Not supported: true is refused.")] | None = None
    conversation: NotYet = None
    prompt: NotYet = None
    moderation: NotYet = None

    def check(self) -> None:
        """What can be known without the model and the items. Raises RequestError, Unsupported."""
        if self.background:
            raise Unsupported("background responses are not supported; leave background out", param="background")
        for name in ("conversation", "prompt", "moderation"):
            if getattr(self, name):
                raise Unsupported.about(name, "is not supported; leave it out")
        if self.n != 1 or (self.best_of or 1) != 1:
            raise Unsupported(
                "a response is one answer; leave n and best_of out", param="n" if self.n != 1 else "best_of"
            )
        if self.prompt_logprobs is not None:
            raise Unsupported.about("prompt_logprobs", "is not supported for responses; leave it out")
        if len(self.stop_strings()) > MAX_STOP:
            raise RequestError.about("stop", f"has {len(self.stop_strings())} strings; at most {MAX_STOP}")

    def includes(self, what: str) -> bool:
        return what in (self.include or ())


# -- what comes out


class OutputText(msgspec.Struct, kw_only=True):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[LogprobEntry] = []


class ReasoningText(msgspec.Struct, kw_only=True):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class MessageItem(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[Any] = []
    content: list[ReasoningText]
    encrypted_content: Annotated[str, Meta(description="The reasoning in a form to send back.")] | UnsetType = UNSET


class FunctionCallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, kw_only=True):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseText(msgspec.Struct, kw_only=True):
    format: TextFormat
    verbosity: str = "medium"


class ResponseReasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response, finished or on its way."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: bool = False
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float | None
    text: ResponseText
    tool_choice: Any
    tools: list[Item]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class ResponseEvent(msgspec.Struct, kw_only=True):
    """An event of a stream; `event:` repeats its type. Further fields depend on that."""

    type: str
    sequence_number: int


class DeletedResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItemList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
