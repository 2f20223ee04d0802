"""Bodies of /v1/messages and /v1/messages/count_tokens, as Anthropic has them.

Blocks and tools of a request stay plain JSON objects here: translate.py reads them. Unknown fields are ignored: coding
agents send many (betas, context_management, cache_control …).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.errors import RequestError, Unsupported
from octavo.server.faces.openai.protocol.shared import MAX_STOP
from octavo.types import SamplingParams

Block = dict[str, Any]
MAX_MESSAGES = 16384


class MessageParam(msgspec.Struct, frozen=True, kw_only=True):
    role: Annotated[str, Meta(description="`user`, `assistant` or `system`.")]
    content: str | list[Block]


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, Meta(description="`enabled`, `adaptive` or `disabled`; left out: disabled.")]
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: Annotated[str, Meta(description="For templates that know it.")] | None = None
    format: OutputFormat | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


Tools = Annotated[
    list[Block], Meta(max_length=1024, description="Functions; tools of Anthropic's servers are ignored.")
]


class MessagesRequest(SamplingParams, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/messages"""

    model: Annotated[str, Meta(description="The served model's name.")]
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1, description="Most tokens to generate; clamped to the context.")]
    system: str | list[Block] | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False
    thinking: Thinking | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: Annotated[dict[str, Any], Meta(description="Accepted; changes nothing.")] | None = None
    service_tier: str | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(description="Switches of the model's template.")] | None = None

    def check(self) -> None:
        """What can be known without the model and the blocks. Raises RequestError, Unsupported."""
        if self.n != 1 or (self.best_of or 1) != 1:
            raise Unsupported(
                "a message is one answer; leave n and best_of out", param="n" if self.n != 1 else "best_of"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                raise Unsupported.about(name, "is not part of messages; leave it out")
        if len(self.stop_sequences or ()) > MAX_STOP:
            raise RequestError.about(
                "stop_sequences", f"has {len(self.stop_sequences or ())} texts; at most {MAX_STOP}"
            )


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens"""

    model: Annotated[str, Meta(description="The served model's name.")]
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[Block] | None = None
    thinking: Thinking | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        pass


# -- what comes out


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: Annotated[str, Meta(description="Clients send it back; it is not looked at.")]


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageUsage(msgspec.Struct, kw_only=True):
    """All of the input is input_tokens + cache_read_input_tokens."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"] = "standard"


class AnthropicMessage(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(msgspec.Struct, kw_only=True):
    """An event of a stream; `event:` repeats its type. Further fields depend on that."""

    type: str


class TokenCount(msgspec.Struct, kw_only=True):
    input_tokens: int
