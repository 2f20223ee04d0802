"""A chat message as its template sees it: plain data, with all the keys it was written with, in their order.

Transformers' treatment, step by step: keys without a value are left out, the reasoning goes by each of the names that
templates read it under, contents stay lists of parts. Where a template does not take parts, they are joined as
Transformers' own server joins them. Nothing but JSON's types reaches a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import Place, RequestError, Unsupported
from octavo.text.template_trials import Shape, Takes
from octavo.types import Message, WrittenMessage

_FIELDS = Message.__struct_fields__
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TEXTS = ("text", "input_text", "output_text")
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def as_data(message: Message, where: Place, takes: Takes, *, with_tools: bool) -> dict[str, Any]:
    """`where`: the message's place in the request, for errors. Raises RequestError, Unsupported."""
    fields = {name: value for name in _FIELDS if (value := getattr(message, name)) is not None}
    found: dict[str, Any] = {}
    for key, value in message.given.items() if isinstance(message, WrittenMessage) else ():
        if key in fields:
            found[key] = plain(fields.pop(key))
        elif key not in _FIELDS and value is not None:
            found[key] = plain(value)
    found |= {key: plain(value) for key, value in fields.items()}
    reasoning = next((found[key] for key in _REASONING if key in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    content = found.get("content")
    if isinstance(content, list):
        shape = Shape(message.role, with_tools, bool(message.tool_calls), reasoning is not None)
        parts = [_text_part(part, where / "content" / i) for i, part in enumerate(content)]
        found["content"] = parts if takes.parts(shape) else joined(parts)
    return found


def joined(parts: list[dict[str, Any]]) -> str:
    """Parts as one text, for templates that take no parts."""
    return " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def plain(value: Any) -> Any:
    """The value made of JSON's types alone; whatever else it holds becomes a placeholder, as in Transformers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _text_part(part: Any, where: Place) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS:
        if isinstance(part.get("text"), str):
            return part if kind == "text" else {**part, "type": "text"}
        raise RequestError("a text part needs a string `text`", param=where)
    if isinstance(kind, str):
        raise Unsupported(f"content parts of type {kind[:40]!r} are not supported by this model", param=where)
    raise RequestError("a content part needs a `type`", param=where)


def tag_final_message(inputs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Put the tag after the final message's text, so that what the template writes behind it can be cut off.
    → the inputs, and that text"""
    *before, last = inputs["messages"]
    content = last.get("content")
    if isinstance(content, list) and content:
        final = content[-1]["text"]
        tagged: Any = [*content[:-1], {**content[-1], "text": final + _CONTINUE_TAG}]
    elif isinstance(content, str):
        final, tagged = content, content + _CONTINUE_TAG
    else:
        raise RequestError(
            "continue_final_message needs text in the final message to continue", param="continue_final_message"
        )
    return {**inputs, "messages": [*before, {**last, "content": tagged}]}, final


def cut_at_tag(text: str, final: str) -> str:
    """The rendered text up to the end of the final message, with its blanks as the template keeps them."""
    position = text.rfind(_CONTINUE_TAG.strip())
    if position < 0 or final.strip() not in text:
        raise RequestError(
            "continue_final_message: the chat template does not show the final message as it stands",
            param="continue_final_message",
        )
    if text.startswith(_CONTINUE_TAG, position):
        return text[:position]
    return text[:position].rstrip()
