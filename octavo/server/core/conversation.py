"""A conversation to be answered, whichever face it came in by, and what came of it.

The chat, responses and messages handlers translate their bodies into a `Conversation`, call `start` inside a watch, and
translate `answers`, or the deltas of a stream, back. What it becomes for the engine (template, tokens, grammar,
channels) is client/conversation.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from octavo.client.conversation import Conversation, Manner, Prompter, blamed
from octavo.errors import ApiError, RequestError
from octavo.server.core.history import checked_messages
from octavo.server.core.serving import Serving
from octavo.server.core.work import Arrived, Work
from octavo.text.channels import joined_calls
from octavo.types import FinishReason, TokenLogprobs, ToolCall, ToolCallDelta

__all__ = ["Answer", "Conversation", "answers", "checked_messages", "render", "rendered", "start", "template_kwargs"]

T = TypeVar("T")

TEMPLATE_KWARGS = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "reasoning_effort", "date_string",
     "custom_tools", "tools_in_user_message", "add_vision_id", "clear_thinking"}
)  # fmt: skip
"""Names that published templates read; anything else could only reach into the rendering itself."""


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
    limit = serve.info().max_model_len
    prompt = await _off_loop(serve, conversation, lambda prompter: prompter.prompt(conversation, limit))
    try:
        return await Work.start(serve.client, [prompt], conversation.params, serve.metrics)
    except ApiError as error:
        raise blamed(error, conversation) from None


def answers(arrived: list[Arrived], n: int) -> list[Answer]:
    """The choices of a work that has finished."""
    found = [Answer() for _ in range(n)]
    calls: list[list[ToolCallDelta]] = [[] for _ in range(n)]
    for _, delta in arrived:
        answer = found[delta.index]
        answer.content += delta.text
        answer.reasoning += delta.reasoning
        answer.logprobs += delta.logprobs or ()
        calls[delta.index] += delta.tool_calls
        if delta.finish_reason is not None:
            answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
    assert all(answer.finish_reason is not None for answer in found), "a generation ended without a finish_reason"
    for answer, parts in zip(found, calls, strict=True):
        answer.tool_calls = joined_calls(parts)
    return found


async def render(serve: Serving, conversation: Conversation, *, is_bounded: bool = True) -> list[int]:
    """The tokens of the prompt; `is_bounded`: as many as the context holds. Raises RequestError that names
    `messages`."""
    limit = serve.info().max_model_len if is_bounded else None
    return await _off_loop(serve, conversation, lambda prompter: prompter.encode(conversation, limit))


async def rendered(serve: Serving, conversation: Conversation) -> str:
    """The prompt as text. Raises RequestError that names `messages`."""
    return await _off_loop(serve, conversation, lambda prompter: prompter.render(conversation))


async def _off_loop(serve: Serving, conversation: Conversation, work: Callable[[Prompter], T]) -> T:
    """Templates and tokenizers take their time: in a thread."""
    template, tokenizer = serve.client.template, serve.client.tokenizer
    manner = Manner.of(template, serve.tool_call_parser, serve.reasoning_parser)
    try:
        return await asyncio.to_thread(work, Prompter(template, tokenizer, manner))
    except ApiError as error:
        raise blamed(error, conversation) from None


def template_kwargs(given: dict[str, Any] | None, reasoning_effort: str | None = None) -> dict[str, Any]:
    """Only known switches with plain values reach a template."""
    kwargs: dict[str, Any] = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
    if reasoning_effort == "none":
        kwargs["enable_thinking"] = False
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
