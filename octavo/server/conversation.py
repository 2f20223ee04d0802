"""A conversation to be answered, whichever face it came in by, and what came of it.

The chat, responses and messages handlers translate their bodies into a `Conversation`, call `start` inside a watch, and
translate `answers`, or the deltas of a stream, back. Everything between is here, once: checks, template, tokenizing,
grammar, channels, the engine's work.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from octavo.client.base import Prompt
from octavo.errors import ApiError, RequestError, Unsupported
from octavo.server.errors import refuse_nul
from octavo.server.serving import Serving, renamed
from octavo.server.work import Arrived, Work
from octavo.text.toolcalls.tool import Tool
from octavo.types import FinishReason, Message, SamplingParams, TokenLogprobs, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool")
TEMPLATE_KWARGS = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "reasoning_effort", "date_string",
     "custom_tools", "tools_in_user_message", "add_vision_id", "clear_thinking"}
)  # fmt: skip
"""Names that published templates read; anything else could only reach into the rendering itself."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """`params.n` answers to `messages`. `params.structured_outputs` binds the content."""

    messages: list[Message]
    params: SamplingParams
    tools: list[Tool] = field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] = "auto"
    named_tool: str | None = None
    """The one tool that has to be called; `tool_choice` is "required" then."""
    parallel_tool_calls: bool = True
    add_generation_prompt: bool | None = None
    """None: unless the last message is continued."""
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""


@dataclass
class Answer:
    """One choice, whole."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the content's tokens."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


async def start(serve: Serving, conversation: Conversation) -> Work:
    """Raises RequestError that names the field as chat completions call it."""
    ids = await render(serve, conversation)
    prompt = Prompt(token_ids=ids, request_id=conversation.request_id)
    try:
        return await Work.start(serve.client, [prompt], conversation.params, serve.metrics)
    except ApiError as error:
        raise renamed(error, "prompt", "messages") from None


def answers(arrived: list[Arrived], n: int) -> list[Answer]:
    """The choices of a work that has finished."""
    found = [Answer() for _ in range(n)]
    for _, delta in arrived:
        answer = found[delta.index]
        answer.content += delta.text
        answer.reasoning += delta.reasoning
        answer.logprobs += delta.logprobs or ()
        for part in delta.tool_calls:
            if part.index == len(answer.tool_calls):
                answer.tool_calls.append(ToolCall(id=part.id or "", name=part.name or "", arguments=""))
            answer.tool_calls[part.index].arguments += part.arguments
        if delta.finish_reason is not None:
            answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
    assert all(answer.finish_reason is not None for answer in found), "a generation ended without a finish_reason"
    return found


async def render(serve: Serving, conversation: Conversation) -> list[int]:
    """Template and tokenizer, off the event loop. Raises RequestError that names `messages`."""
    template, limit = serve.client.template, serve.info().max_model_len
    add_generation_prompt = conversation.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not conversation.continue_final_message

    def encode() -> list[int]:
        return template.encode(
            conversation.messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            max_tokens=limit,
            **conversation.template_kwargs,
        )

    try:
        return await asyncio.to_thread(encode)
    except ApiError as error:
        raise renamed(error, "prompt", "messages") from None


def checked_messages(messages: list[Message]) -> list[Message]:
    """The messages, `developer` named `system` as templates know it. What the template cannot take in is refused by
    name; text and parts are the template's business."""
    if not messages:
        raise RequestError("messages must not be empty", param="messages")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked(message: Message, at: str) -> Message:
    if message.role not in ROLES:
        raise RequestError(
            f"{at}.role is {message.role[:40]!r}; it must be one of {', '.join(ROLES)}", param=f"{at}.role"
        )
    if message.tool_calls:
        raise Unsupported(f"{at}.tool_calls is not supported yet; leave it out", param=f"{at}.tool_calls")
    if message.content is None:
        raise RequestError(f"{at}.content is required for role {message.role}", param=f"{at}.content")
    parts = [message.content] if isinstance(message.content, str) else [p.get("text") for p in message.content]
    for text in parts:
        if isinstance(text, str):
            refuse_nul(text, f"{at}.content")
    for name, value in (("name", message.name), ("reasoning_content", message.reasoning_content)):
        refuse_nul(value or "", f"{at}.{name}")
    return msgspec.structs.replace(message, role="system") if message.role == "developer" else message


def template_kwargs(given: dict[str, Any] | None, reasoning_effort: str | None = None) -> dict[str, Any]:
    """Only known switches with plain values reach a template."""
    kwargs: dict[str, Any] = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
    for name, value in (given or {}).items():
        if name not in TEMPLATE_KWARGS:
            known = ", ".join(sorted(TEMPLATE_KWARGS))
            raise RequestError(
                f"chat_template_kwargs: {name[:40]!r} is not allowed; allowed are {known}", param="chat_template_kwargs"
            )
        if not isinstance(value, str | int | float | bool | None):
            raise RequestError(
                f"chat_template_kwargs: {name} must be a text, a number or a switch", param="chat_template_kwargs"
            )
        kwargs[name] = value
    return kwargs
