"""A chat request in the terms that all faces share: its messages, its tools and the choice among them.

Pure; raises RequestError in the words of this API. The deprecated `functions` and `function_call` are the same thing
under older names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from octavo.client.conversation import Conversation
from octavo.errors import ApiError, Place, RequestError, Unsupported
from octavo.server.core.history import checked_messages, template_kwargs
from octavo.server.faces.openai.protocol.chat import (
    ChatCompletionRequest,
    ChatMessage,
    ChatTool,
    FunctionDefinition,
    WrittenChatMessage,
    WrittenTool,
)
from octavo.text.toolcalls.tool import NAME, Tool
from octavo.types import Message, WrittenMessage


def conversation(asked: ChatCompletionRequest) -> Conversation:
    """The request in the terms that all faces share. Raises RequestError."""
    choice = chosen(asked)
    kwargs = dict(asked.chat_template_kwargs or {})
    if asked.thinking_token_budget is not None:
        kwargs["thinking_budget"] = asked.thinking_token_budget
    return Conversation(
        messages=checked_messages(history(asked.messages)),
        params=asked.sampling(),
        tools=choice.tools,
        tool_choice=choice.tool_choice,
        named_tool=choice.named,
        parallel_tool_calls=asked.parallel_tool_calls is not False and not asked.by_functions,
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        template_kwargs=template_kwargs(kwargs, asked.reasoning_effort),
        logprobs_of_all=asked.return_token_ids,
        structured_place=Place(asked.constraint()[1]),
    )


class Choice(NamedTuple):
    tools: list[Tool]
    tool_choice: Literal["none", "auto", "required"]
    named: str | None


def chosen(asked: ChatCompletionRequest) -> Choice:
    """What may be called and what has to be. Raises RequestError, Unsupported."""
    if asked.by_functions:
        return _chosen_functions(asked)
    tools = [_tool(tool, Place("tools", i)) for i, tool in enumerate(asked.tools or [])]
    _check_names(tools, lambda index: Place("tools", index, "function", "name"))
    choice = asked.tool_choice
    if choice is None or choice in ("none", "auto"):
        return Choice(tools, "none" if choice == "none" else "auto", None)
    if not tools:
        raise RequestError.about("tool_choice", "is only allowed when tools are specified")
    if choice == "required":
        return Choice(tools, "required", None)
    if isinstance(choice, str):
        raise RequestError.about(
            "tool_choice",
            f"is {choice[:40]!r}; it must be 'none', 'auto', 'required' or an object that names a function",
        )
    kind = choice.get("type")
    if kind == "function":
        return Choice(tools, "required", _known(_function_name(choice, Place("tool_choice")), tools, "tool_choice"))
    if kind == "allowed_tools":
        return _allowed(choice, tools)
    if isinstance(kind, str):
        raise Unsupported.about("tool_choice", f"of type {kind[:40]!r} is not supported; 'function' is")
    raise RequestError.about(Place("tool_choice", "type"), "is required")


def _chosen_functions(asked: ChatCompletionRequest) -> Choice:
    tools = [_function(function) for function in asked.functions or []]
    _check_names(tools, lambda index: Place("functions", index, "name"))
    choice = asked.function_call
    if choice is None or choice in ("none", "auto"):
        return Choice(tools, "none" if choice == "none" else "auto", None)
    name = choice.get("name") if isinstance(choice, dict) else None
    if not isinstance(name, str):
        raise RequestError.about("function_call", "must be 'none', 'auto' or an object with a name")
    return Choice(tools, "required", _known(name, tools, "function_call"))


def _tool(tool: ChatTool, at: Place) -> Tool:
    kind = tool.type
    if kind != "function":
        raise Unsupported.about(at / "type", f"is {kind[:40]!r}; only 'function' is supported")
    if tool.function is None:
        raise RequestError.about(at / "function", "is required", code="missing_required_parameter")
    return _function(tool.function, tool.given if isinstance(tool, WrittenTool) else None)


def _function(function: FunctionDefinition, given: dict[str, Any] | None = None) -> Tool:
    return Tool(
        name=function.name,
        description=function.description,
        parameters=function.parameters,
        strict=bool(function.strict),
        given=given,
    )


def _check_names(tools: list[Tool], place: Callable[[int], Place]) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        at = place(index)
        if not NAME.fullmatch(tool.name):
            raise RequestError.about(at, f"is {tool.name[:40]!r}; a name has 1 to 128 letters, digits and _ - . : /")
        if tool.name in seen:
            raise RequestError(f"{at}: there are two tools named {tool.name!r}", param=at)
        seen.add(tool.name)


def _function_name(choice: dict[str, Any], at: Place) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    if not isinstance(name, str):
        raise RequestError.about(at / "function" / "name", "is required")
    return name


def _known(name: str, tools: list[Tool], param: Place | str) -> str:
    if all(tool.name != name for tool in tools):
        raise RequestError(f"{param}: there is no tool named {name[:128]!r}", param=param)
    return name


def _allowed(choice: dict[str, Any], tools: list[Tool]) -> Choice:
    """Some of the tools; the others are as if they had not been sent."""
    allowed = choice.get("allowed_tools")
    given = allowed.get("tools") if isinstance(allowed, dict) else None
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    if not isinstance(given, list) or mode not in ("auto", "required"):
        raise RequestError.about(
            Place("tool_choice", "allowed_tools"), "needs a mode, 'auto' or 'required', and a list of tools"
        )
    names = set()
    for index, one in enumerate(given):
        at = Place("tool_choice", "allowed_tools", "tools", index)
        if not isinstance(one, dict):
            raise RequestError.about(at, "must be an object")
        names.add(_known(_function_name(one, at), tools, at))
    found = [tool for tool in tools if tool.name in names]
    if mode == "required" and not found:
        raise RequestError.about(Place("tool_choice", "allowed_tools", "tools"), "is empty")
    return Choice(found, mode, None)


def in_words_of(error: ApiError, asked: ChatCompletionRequest) -> ApiError:
    """An error about `tools`, naming `functions` where the request says so."""
    if asked.by_functions:
        match error.place:
            case ("tools", int(index), "function", *rest):
                error.place = Place("functions", index, *rest)
            case ("tools", *rest):
                error.place = Place("functions", *rest)
    return error


def history(messages: list[ChatMessage]) -> list[Message]:
    """Function calls as tool calls, refusals as content, whatever the reasoning is called; and what else is given."""
    found: list[Message] = []
    last_id: dict[str, str] = {}
    for index, message in enumerate(messages):
        role, calls, call_id = message.role, message.tool_calls, message.tool_call_id
        given = message.given if isinstance(message, WrittenChatMessage) else {}
        if message.function_call is not None and not calls:
            name = message.function_call.get("name")
            made = f"call_{index}"
            last_id[str(name)] = made
            calls = [{"id": made, "type": "function", "function": message.function_call}]
            given = {key: value for key, value in given.items() if key != "function_call"}
        if role == "function":
            role, call_id = "tool", last_id.get(message.name or "", f"call_{index}")
        found.append(
            WrittenMessage(
                role=role,
                content=_content(message),
                name=message.name,
                tool_calls=calls,
                tool_call_id=call_id,
                reasoning_content=message.reasoning_content or message.reasoning,
                given=given,
            )
        )
    return found


def _content(message: ChatMessage) -> str | list[dict[str, Any]] | None:
    content = message.content
    if content is None and message.role == "assistant":
        return message.refusal
    if isinstance(content, list) and any(part.get("type") == "refusal" for part in content):
        return [
            {"type": "text", "text": part.get("refusal")} if part.get("type") == "refusal" else part for part in content
        ]
    return content
