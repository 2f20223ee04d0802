"""A conversation to be answered, whichever face it came in by, and what came of it.

A face translates its body into a `Conversation`, starts it inside a watch, and translates `answers`, or the deltas of a
stream, back. What it becomes for the engine (template, tokens, grammar, channels) is client/conversation.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from octavo.client.conversation import Conversation, Prompter, blamed
from octavo.server.core.account import Account
from octavo.server.core.serving import Served
from octavo.server.core.turns import reworded
from octavo.server.core.work import Arrived, Work
from octavo.text.channels import joined_calls
from octavo.types import FinishReason, TokenLogprobs, ToolCall, ToolCallDelta

T = TypeVar("T")


@dataclass
class Answer:
    """One choice, whole."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the content's tokens, or of all."""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


async def start(served: Served, conversation: Conversation, account: Account) -> Work:
    """Raises RequestError that names the field as chat completions call it."""
    limit = served.info.max_model_len
    prompt = await _prompted(served, conversation, account, lambda prompter: prompter.prompt(conversation, limit))
    with reworded(lambda error: blamed(error, conversation)):
        return await Work.start(served.client, served.metrics, [prompt], conversation.params, account)


def answers(arrived: list[Arrived], n: int) -> list[Answer]:
    """The choices of a work that has finished."""
    found = [Answer() for _ in range(n)]
    calls: list[list[ToolCallDelta]] = [[] for _ in range(n)]
    for _, delta in arrived:
        answer = found[delta.index]
        answer.content += delta.text
        answer.reasoning += delta.reasoning
        answer.logprobs += delta.logprobs or ()
        answer.token_ids += delta.token_ids
        calls[delta.index] += delta.tool_calls
        if delta.finish_reason is not None:
            answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
    assert all(answer.finish_reason is not None for answer in found), "a generation ended without a finish_reason"
    for answer, parts in zip(found, calls, strict=True):
        answer.tool_calls = joined_calls(parts)
    return found


async def render(served: Served, conversation: Conversation, account: Account, *, is_bounded: bool = True) -> list[int]:
    """The tokens of the prompt; `is_bounded`: as many as the context holds. Raises RequestError that names
    `messages`."""
    limit = served.info.max_model_len if is_bounded else None
    return await _prompted(served, conversation, account, lambda prompter: prompter.encode(conversation, limit))


async def rendered(served: Served, conversation: Conversation, account: Account) -> str:
    """The prompt as text. Raises RequestError that names `messages`."""
    return await _prompted(served, conversation, account, lambda prompter: prompter.render(conversation))


async def _prompted(served: Served, conversation: Conversation, account: Account, work: Callable[[Prompter], T]) -> T:
    with reworded(lambda error: blamed(error, conversation)):
        return await served.prompted(work, account)
