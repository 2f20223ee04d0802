"""What Python callers may pass, brought to one form: configs, prompts, messages, sampling parameters.

Called by client/offline.py and client/offline_async.py. Pure; what is not understood is a RequestError or ConfigError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.client.base import Prompt
from octavo.client.conversation import Conversation
from octavo.config.engine import EngineConfig
from octavo.errors import ConfigError, RequestError
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message, SamplingParams, WrittenMessage

OnePrompt = str | Sequence[int] | Prompt
Messages = Sequence[Message | dict[str, Any]]
Tools = Sequence[Tool | dict[str, Any]]
_TOOL_FIELDS = ("name", "description", "parameters", "strict")


def engine_config(config: EngineConfig | str | None, options: dict[str, Any]) -> EngineConfig:
    """An EngineConfig, a model by name, or nothing; `options` are set over it. Raises ConfigError."""
    if isinstance(config, str):
        options = {"model": config, **options}
    base = config if isinstance(config, EngineConfig) else EngineConfig()
    unknown = set(options) - set(base.__struct_fields__)
    if unknown:
        raise ConfigError(f"EngineConfig has no field {min(unknown)!r}")
    merged = msgspec.structs.replace(base, **options)
    try:
        return msgspec.convert(msgspec.to_builtins(merged), EngineConfig)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(f"EngineConfig: {error}") from None


def prompt_list(prompts: OnePrompt | Sequence[OnePrompt]) -> list[OnePrompt]:
    """One prompt or several → several. A list of numbers is one prompt."""
    if isinstance(prompts, str | Prompt):
        return [prompts]
    found: list[Any] = list(prompts)
    if found and not any(isinstance(item, str | Prompt | Sequence) or hasattr(item, "__len__") for item in found):
        return [found]
    return found


def conversation_list(messages: Messages | Sequence[Messages]) -> list[Messages]:
    """One conversation or several → several."""
    found: list[Any] = list(messages)
    return [found] if all(isinstance(item, Message | dict) for item in found) else found


def as_messages(messages: Messages) -> list[Message]:
    try:
        return [m if isinstance(m, Message) else _message(m) for m in messages]
    except (msgspec.ValidationError, TypeError) as error:
        raise RequestError(f"messages: {error}", param="messages") from None


def _message(given: dict[str, Any]) -> WrittenMessage:
    known = msgspec.convert({key: given[key] for key in Message.__struct_fields__ if key in given}, Message)
    return WrittenMessage(**msgspec.structs.asdict(known), given=dict(given))


def conversation(
    messages: Messages, params: SamplingParams, tools: Tools | None, tool_choice: str, options: dict[str, Any]
) -> Conversation:
    """`tool_choice`: auto, none, required or a tool's name. `options`: further fields of Conversation."""
    found = [_tool(tool) for tool in tools or ()]
    named = None if tool_choice in ("auto", "none", "required") else tool_choice
    if named is not None and all(tool.name != named for tool in found):
        raise RequestError(f"tool_choice: there is no tool named {named[:128]!r}", param="tool_choice")
    if tool_choice == "required" and not found:
        raise RequestError("tool_choice is required, but there are no tools", param="tool_choice")
    choice: Any = tool_choice if named is None else "required"
    given = as_messages(messages)
    return Conversation(messages=given, params=params, tools=found, tool_choice=choice, named_tool=named, **options)


def chat_options(
    add_generation_prompt: bool, continue_final_message: bool, kwargs: dict[str, Any] | None
) -> dict[str, Any]:
    """These arguments as fields of Conversation."""
    return {
        "add_generation_prompt": add_generation_prompt and not continue_final_message,
        "continue_final_message": continue_final_message,
        "template_kwargs": kwargs or {},
    }


def _tool(tool: Tool | dict[str, Any]) -> Tool:
    """A Tool, or a function as OpenAI writes it."""
    if isinstance(tool, Tool):
        return tool
    try:
        fields = {key: tool["function"][key] for key in _TOOL_FIELDS if tool["function"].get(key) is not None}
        return msgspec.structs.replace(msgspec.convert(fields, Tool), given=dict(tool))
    except (msgspec.ValidationError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"tools: each is a Tool, or a dict with a function: {error}", param="tools") from None


def one_params(params: SamplingParams | None, fields: dict[str, Any]) -> SamplingParams:
    """`params`, or the defaults, with `fields` set over them."""
    unknown = set(fields) - set(SamplingParams.__struct_fields__)
    if unknown:
        raise RequestError(f"SamplingParams has no field {min(unknown)!r}", param=min(unknown))
    return msgspec.structs.replace(params or SamplingParams(), **fields)


def params_list(
    params: SamplingParams | Sequence[SamplingParams] | None, fields: dict[str, Any], count: int
) -> list[SamplingParams]:
    """One for all prompts, or as many as there are prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [one_params(params, fields)] * count
    if len(params) != count:
        raise RequestError(f"{len(params)} SamplingParams for {count} prompts", param="sampling_params")
    return [one_params(each, fields) for each in params]
