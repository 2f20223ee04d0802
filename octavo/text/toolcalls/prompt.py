"""Tools and earlier calls as a model's template takes them. Used by client/conversation.py; pure.

Templates differ: some want arguments as mappings, some as text, some insist on short ids, and some know no tools at
all; for those the tools, the calls and their results become text, in the way of Hermes. Invariant: whatever stands in
the history, arguments that are no JSON among it, is shown to the model and stops no later turn.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import msgspec

from octavo.text.message_data import joined
from octavo.text.template import ChatTemplate
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message

_SYSTEM = """You can call functions to help with the user's request. These are their signatures:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and its arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": "function-name", "arguments": {{"argument-name": "value"}}}}
</tool_call>
The result of a call comes back within <tool_response></tool_response> tags."""
_SHORT = re.compile(r"length *(!=|<) *9\b")
"""In templates of Mistral, which refuse other ids."""
_LETTERS = string.ascii_letters + string.digits


def told(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool]
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages and the tools to give to the template."""
    if template.knows_tools:
        shorten = _SHORT.search(template.sources) is not None
        given = [_for_template(message, template, shorten) for message in _with_content(messages, template)]
        if not template.takes.several_calls:
            given = _one_by_one(given)
        return given, [tool.as_openai() for tool in tools] or None
    found = _as_text(_with_content(messages, template))
    if tools:
        text = _SYSTEM.format(tools="\n".join(_json(tool.as_openai()) for tool in tools))
        found = _with_system(found, text, takes_system=template.takes.system)
    return found, None


def arguments_of(given: Any) -> Any:
    """A call's arguments as the mapping they stand for; text that is no JSON object as it is."""
    if given is None or given == "":
        return {}
    if not isinstance(given, str):
        return given
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        return given
    return {} if value is None else value if isinstance(value, dict) else given


def _for_template(message: Message, template: ChatTemplate, shorten: bool) -> Message:
    if not message.tool_calls and message.tool_call_id is None:
        return message
    calls = [_call(call, template, shorten) for call in message.tool_calls or ()]
    call_id = message.tool_call_id
    return msgspec.structs.replace(
        message,
        tool_calls=calls or None,
        tool_call_id=_short(call_id) if shorten and call_id is not None else call_id,
    )


def _with_content(messages: Sequence[Message], template: ChatTemplate) -> list[Message]:
    """An empty text for content that is not there, where the template stumbles over that."""

    def goes_without(message: Message) -> bool:
        if message.role != "assistant":
            return False
        return template.takes.calls_without_content if message.tool_calls else template.takes.turns_without_content

    return [
        msgspec.structs.replace(message, content="")
        if message.content is None and not goes_without(message)
        else message
        for message in messages
    ]


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """A message for each call, with its result behind it."""
    found: list[Message] = []
    waiting = deque(messages)
    while waiting:
        message = waiting.popleft()
        calls = message.tool_calls or []
        if len(calls) < 2:
            found.append(message)
            continue
        results = list(takewhile(lambda later: later.role == "tool", waiting))
        for _ in results:
            waiting.popleft()
        for index, call in enumerate(calls):
            said = message.content if index == 0 else ""
            found.append(msgspec.structs.replace(message, tool_calls=[call], content=said))
            result = next((r for r in results if r.tool_call_id == call.get("id")), None)
            if result is not None:
                results.remove(result)
                found.append(result)
        found += results
    return found


def _call(call: dict[str, Any], template: ChatTemplate, shorten: bool) -> dict[str, Any]:
    takes, function = template.takes, call.get("function") or {}
    given = function.get("arguments")
    arguments = arguments_of(given)
    if isinstance(given, str) and given.lstrip().startswith("{") and takes.verbatim_arguments:
        arguments = given
    elif isinstance(arguments, str) and not takes.text_arguments:
        arguments = {"arguments": arguments}
    elif not isinstance(arguments, str) and takes.text_arguments and not takes.mapping_arguments:
        arguments = _json(arguments)
    found = {**call, "type": "function", "function": {**function, "arguments": arguments}}
    if shorten:
        found["id"] = _short(str(call.get("id") or ""))
    return found


def _short(call_id: str) -> str:
    """An id of nine letters and digits, the same for the call and its result."""
    if len(call_id) == 9 and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode(errors="replace")).digest()[:8], "big")
    return "".join(_LETTERS[number // len(_LETTERS) ** i % len(_LETTERS)] for i in range(9))


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Calls and results as Hermes writes them; results that follow each other are one message."""
    found: list[Message] = []
    in_results = False
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{_text(message.content)}\n</tool_response>"
            if in_results:
                found[-1].content = f"{found[-1].content}\n{text}"
            else:
                found.append(Message(role="user", content=text))
            in_results = True
            continue
        in_results = False
        if message.tool_calls:
            said = _text(message.content)
            written = [said] if said else []
            for call in message.tool_calls:
                function = call.get("function") or {}
                shown = {"name": function.get("name", ""), "arguments": arguments_of(function.get("arguments"))}
                written.append(f"<tool_call>\n{_json(shown)}\n</tool_call>")
            message = msgspec.structs.replace(message, content="\n".join(written), tool_calls=None)
        found.append(message)
    return found


def _with_system(messages: list[Message], text: str, takes_system: bool) -> list[Message]:
    """The text at the end of the system message, or as one; before the first message where templates know none."""
    if not takes_system:
        first = messages[0]
        return [msgspec.structs.replace(first, content=f"{text}\n\n{_text(first.content)}"), *messages[1:]]
    if messages[0].role != "system":
        return [Message(role="system", content=text), *messages]
    first = messages[0]
    return [msgspec.structs.replace(first, content=f"{_text(first.content)}\n\n{text}".lstrip()), *messages[1:]]


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return joined(content)
    return content or ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
