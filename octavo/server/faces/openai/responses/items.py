"""The input of a response, items as the Responses API writes them, becomes the turns that all faces share.

Pure. Items of tools that run elsewhere (web_search_call, mcp_list_tools …) say
nothing to the model and are passed over; a type that nobody knows is refused by its place.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from octavo.errors import Place, RequestError, Unsupported
from octavo.server.core.turns import Part, Turns, text_of, text_part
from octavo.server.faces.openai.protocol.shared import Item
from octavo.server.faces.openai.responses.seal import SEALED, unsealed
from octavo.server.faces.openai.responses.tools import seen_name

PASSED_OVER = frozenset(
    {"web_search_call", "file_search_call", "computer_call", "computer_call_output",
     "image_generation_call", "code_interpreter_call", "mcp_list_tools", "mcp_approval_request",
     "mcp_approval_response", "tool_search_call", "tool_search_output", "additional_tools", "configuration_update",
     "compaction", "compaction_trigger", "program", "program_output"}
)  # fmt: skip
_IDS = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def listed(given: str | list[Item]) -> list[Item]:
    """The items of an input as they are kept and shown: each with a type and an id. Raises RequestError."""
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    found = []
    for index, item in enumerate(given):
        kind = item.get("type", "message" if "role" in item else "item_reference" if "id" in item else None)
        if not isinstance(kind, str):
            at = Place("input", index, "type")
            raise RequestError.about(at, "must be a text")
        item = {**item, "type": kind}
        if not isinstance(item.get("id"), str):
            item["id"] = f"{_IDS.get(kind, 'item')}_{uuid.uuid4().hex}"
        if kind == "message" and isinstance(content := item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            item["content"] = [
                {"type": part, "text": content, **({"annotations": []} if part == "output_text" else {})}
            ]
        if kind != "item_reference":
            item.setdefault("status", "completed")
        found.append(item)
    return found


def add_items(turns: Turns, items: list[Item], where: str = "input") -> None:
    """Raises RequestError that names the place of an item."""
    for index, item in enumerate(items):
        _add(turns, item, Place(where, index))


def _add(turns: Turns, item: Item, place: Place) -> None:
    kind = item["type"]
    if kind == "message":
        _add_message(turns, item, place)
    elif kind == "reasoning":
        if text := _reasoning(item, place):
            turns.reasoning(text, place)
    elif kind == "function_call":
        turns.call(text_of(item, "call_id", place), _name(item, place), text_of(item, "arguments", place), place)
    elif kind == "custom_tool_call":
        arguments = _json({"input": text_of(item, "input", place)})
        turns.call(text_of(item, "call_id", place), _name(item, place), arguments, place)
    elif kind in ("local_shell_call", "shell_call", "apply_patch_call", "mcp_call"):
        named = item.get("name") if kind == "mcp_call" else kind.removesuffix("_call")
        about = item.get("action") or item.get("operation") or item.get("arguments")
        arguments = about if isinstance(about, str) else _json(about or {})
        turns.call(str(item.get("call_id") or item["id"]), str(named), arguments, place)
        if kind == "mcp_call" and isinstance(output := item.get("output"), str):
            turns.result(item["id"], output, place)
    elif kind.endswith("_call_output") and kind not in PASSED_OVER:
        turns.result(str(item.get("call_id") or item["id"]), _output(item.get("output"), place / "output"), place)
    elif kind not in PASSED_OVER:
        raise RequestError.about(place / "type", f"is {kind[:40]!r}, which no item of an input is")


def _add_message(turns: Turns, item: Item, place: Place) -> None:
    role = item.get("role")
    parts = _parts(item.get("content"), place / "content")
    if role not in ("user", "assistant", "system", "developer"):
        raise RequestError.about(
            place / "role", f"is {str(role)[:40]!r}; it must be one of user, assistant, system, developer"
        )
    turns.say("system" if role == "developer" else role, parts, place)


def _parts(content: Any, place: Place) -> list[Part]:
    if isinstance(content, str):
        return [text_part(content)]
    if not isinstance(content, list):
        raise RequestError.about(place, "must be a text or a list of parts")
    return [text_part(_part_text(part, place / i)) for i, part in enumerate(content)]


def _part_text(part: Any, place: Place) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        return text_of(part, "text", place)
    if kind == "refusal":
        return text_of(part, "refusal", place)
    if isinstance(kind, str):
        raise Unsupported(f"{place}: parts of type {kind[:40]!r} are not supported; send text", param=place)
    raise RequestError.about(place, "must be an object with a type")


def _output(output: Any, place: Place) -> str:
    """Of a tool: a text, or parts of which the texts count."""
    if isinstance(output, str):
        return output
    if isinstance(output, list):
        if all(isinstance(part, dict) and "stdout" in part for part in output):  # of a shell
            return "\n".join(str(part.get("stdout", "")) + str(part.get("stderr", "")) for part in output)
        return "\n".join(part["text"] for part in _parts(output, place))
    if output is None:
        return ""
    return _json(output)


def _reasoning(item: Item, place: Place) -> str:
    """What can be read of it: its content, else what this server sealed, else the summary."""
    sealed = item.get("encrypted_content")
    for key in ("content", "summary"):
        if item.get(key):
            return "\n".join(part["text"] for part in _parts(item[key], place / key))
        if key == "content" and isinstance(sealed, str) and sealed.startswith(SEALED):
            return unsealed(sealed, place)
    return ""


def _name(item: Item, place: Place) -> str:
    return seen_name(text_of(item, "name", place), item.get("namespace"))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
