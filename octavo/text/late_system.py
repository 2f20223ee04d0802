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
    if all(message.role != "system" for message in messages[1:]) or template.takes.late_system:
        return messages
    found: list[Message] = []
    for message in messages:
        if message.role == "system" and found and found[-1].role != "system":
            message = Message(role="user", content=_reminded(message.content))
        last = found[-1] if found else None
        if last is not None and last.role == message.role and message.role in ("system", "user"):
            found[-1] = msgspec.structs.replace(last, content=_together(last, message))
        else:
            found.append(message)
    return found


def _reminded(content: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]]:
    if isinstance(content, list):
        return [_reminder(part) for part in content]
    return _REMINDER.format(content or "")


def _reminder(part: dict[str, Any]) -> dict[str, Any]:
    text = part.get("text")
    return {**part, "text": _REMINDER.format(text)} if isinstance(text, str) else part


def _together(first: Message, second: Message) -> str | list[dict[str, Any]]:
    """Texts as lines of one text; where one of them has parts, the parts of both."""
    if isinstance(first.content, str) and isinstance(second.content, str):
        return f"{first.content}\n{second.content}"
    return _parts(first) + _parts(second)


def _parts(message: Message) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return list(message.content or ())
