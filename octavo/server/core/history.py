"""What of a request reaches a template, checked: messages that none can take in are refused by name, what other servers
take in is put into the form that templates know, and only known switches go through.

Invariant: nothing a model once said wrongly (calls with broken arguments, unknown ids, no content)
makes a later turn fail.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.client.prepare import refuse_nul
from octavo.errors import Place, RequestError
from octavo.types import Message

TEMPLATE_KWARGS = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "reasoning_effort", "date_string",
     "custom_tools", "tools_in_user_message", "add_vision_id", "clear_thinking", "truncate_history_thinking",
     "thinking_mode", "thinking_effort", "thinking_option", "reasoning_mode", "reasoning_strength", "low_effort",
     "medium_effort", "keep_reasoning", "keep_past_thinking", "drop_thinking", "include_thinking", "skip_think",
     "skip_thinking", "add_thoughts", "model_identity", "knowledge_cutoff", "current_date", "enable_citations",
     "custom_instructions", "default_system_prompt", "safety_mode"}
)  # fmt: skip
"""Names that published templates read; anything else could only reach into the rendering itself."""
ROLES = ("system", "developer", "user", "assistant", "tool")


def checked_messages(messages: list[Message]) -> list[Message]:
    """The messages, `developer` named `system` as templates know it. Text and parts are the template's business."""
    if not messages:
        raise RequestError.about("messages", "must not be empty")
    return [_checked(message, Place("messages", i)) for i, message in enumerate(messages)]


def _checked(message: Message, at: Place) -> Message:
    if message.role not in ROLES:
        raise RequestError.about(at / "role", f"is {message.role[:40]!r}; it must be one of {', '.join(ROLES)}")
    content = message.content
    if content is None:
        if message.role not in ("assistant", "tool"):
            raise RequestError.about(at / "content", f"is required for role {message.role}")
        content = None if message.role == "assistant" else ""
    parts = [part.get("text") for part in content] if isinstance(content, list) else [content]
    for text in parts:
        if isinstance(text, str):
            refuse_nul(text, at / "content")
    for name, value in (("name", message.name), ("reasoning_content", message.reasoning_content)):
        refuse_nul(value or "", at / name)
    calls = None
    if message.tool_calls and message.role == "assistant":
        calls = [_call(call, at / "tool_calls" / i) for i, call in enumerate(message.tool_calls)]
    role = "system" if message.role == "developer" else message.role
    return msgspec.structs.replace(message, role=role, content=content, tool_calls=calls)


def _call(call: dict[str, Any], at: Place) -> dict[str, Any]:
    """A call as OpenAI writes it. A custom tool's input is its one argument."""
    function = call.get("function")
    if function is None and isinstance(custom := call.get("custom"), dict):
        function = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
    if not isinstance(function, dict):
        raise RequestError.about(at / "function", "is required")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise RequestError.about(at / "function" / "name", "must be a text")
    if not isinstance(arguments, str | dict | None):
        raise RequestError.about(at / "function" / "arguments", "must be a text that holds JSON")
    if isinstance(arguments, str):
        arguments = arguments.replace("\0", "")
    rest = {key: value for key, value in call.items() if key != "custom" and (key != "id" or isinstance(value, str))}
    return {
        **rest,
        "type": "function",
        "function": {**function, "name": name.replace("\0", ""), "arguments": arguments},
    }


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
