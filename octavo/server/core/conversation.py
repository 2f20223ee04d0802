"""A conversation to be answered, whichever face it came in by.

A face translates its body into a `Conversation`, starts it inside a watch, and translates the deltas that come, one by
one or one for each choice, back. What it becomes for the engine (template, tokens, grammar, channels) is
client/conversation.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from octavo.client.conversation import Conversation, Prompter, blamed
from octavo.server.core.account import Account
from octavo.server.core.serving import Served
from octavo.server.core.turns import reworded
from octavo.server.core.work import Work

T = TypeVar("T")


async def start(served: Served, conversation: Conversation, account: Account) -> Work:
    """Raises RequestError that names the field as chat completions call it."""
    limit = served.info.max_model_len
    prompt = await _prompted(served, conversation, account, lambda prompter: prompter.prompt(conversation, limit))
    with reworded(lambda error: blamed(error, conversation)):
        return await Work.start(served.client, served.metrics, [prompt], conversation.params, account)


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
