"""System messages where a template wants them. Used by client/conversation.py; pure.

Coding agents send instructions in the middle of a conversation. Templates that refuse them there, or pass them over,
get them as part of the user's turn, in tags; several at the beginning become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.text.template import ChatTemplate
from octavo.types import Message

_REMINDER = "<system-reminder>\n{}\n</system-reminder>"


def in_place(template: ChatTemplate, messages: Sequence[Message]) -> Sequence[Message]:
    if all(message.role != "system" for message in messages[1:]) or template.takes_late_system:
        return messages
    found: list[Message] = []
    for message in messages:
        if message.role == "system" and found and found[-1].role != "system":
            message = Message(role="user", content=[_reminder(part) for part in _parts(message)])
        last = found[-1] if found else None
        if last is not None and last.role == message.role and message.role in ("system", "user"):
            found[-1] = msgspec.structs.replace(last, content=_parts(last) + _parts(message))
        else:
            found.append(message)
    return found


def _reminder(part: dict[str, Any]) -> dict[str, Any]:
    text = part.get("text")
    return {**part, "text": _REMINDER.format(text)} if isinstance(text, str) else part


def _parts(message: Message) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return list(message.content or ())
