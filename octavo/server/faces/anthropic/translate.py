"""A request of /v1/messages in the terms that all faces share.

Pure. Everything here raises RequestError in the words of this API.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from octavo.client.conversation import Conversation
from octavo.errors import ApiError, ContextLengthExceeded, Place, RequestError, Unsupported
from octavo.server.core.history import checked_messages, template_kwargs
from octavo.server.core.turns import Part, Turns, moved, reworded, schemas_named, text_of, text_part
from octavo.server.faces.anthropic.protocol import Block, CountTokensRequest, MessageParam, MessagesRequest, Thinking
from octavo.server.faces.anthropic.tools import chosen, client_tools
from octavo.types import SamplingParams, StructuredOutputs

BILLING = "x-anthropic-billing-header:"
"""Begins a system block of a coding agent that differs with every request and is not meant for the model; in the prompt
it would keep every prefix from being found in the cache."""
_PLACES = {"stop": Place("stop_sequences"), "reasoning_effort": Place("output_config", "effort")}
PASSED_OVER = ("redacted_thinking", "server_tool_use", "container_upload", "compaction", "mcp_tool_use", "fallback")
"""Blocks in the history that say nothing to this model; so do the results of server tools, whatever their names."""


def conversation(asked: MessagesRequest | CountTokensRequest, params: SamplingParams) -> tuple[Turns, Conversation]:
    turns = turns_of(asked.system, asked.messages)
    tools = client_tools(asked.tools or [])
    choice, named = chosen(asked.tool_choice, tools)
    with reworded(lambda error: turns.named(error, "messages")):
        messages = checked_messages(turns.messages)
    last = messages[-1]
    is_prefill = asked.messages[-1].role == "assistant" and bool(last.content) and not last.tool_calls
    effort = asked.output_config.effort if asked.output_config is not None else None
    return turns, Conversation(
        messages=messages,
        params=params,
        tools=tools,
        tool_choice=choice,
        named_tool=named,
        parallel_tool_calls=asked.tool_choice is None or not asked.tool_choice.disable_parallel_tool_use,
        continue_final_message=is_prefill,  # the answer goes on where the assistant's own turn ends
        template_kwargs=template_kwargs(thinking_kwargs(asked.thinking) | (asked.chat_template_kwargs or {}), effort),
        structured_place=Place("output_config", "format"),
    )


def thinking_kwargs(thinking: Thinking | None) -> dict[str, Any]:
    """As templates call it; without the field there is no thinking, as in Anthropic's API."""
    if thinking is None or thinking.type == "disabled":
        return {"enable_thinking": False}
    if thinking.budget_tokens is None:
        return {"enable_thinking": True}
    return {"enable_thinking": True, "thinking_budget": thinking.budget_tokens}


def unbounded(wanted: Conversation) -> Conversation:
    """For a model that cannot be held to a budget of thinking, which in this API is an aim."""
    kwargs = {name: value for name, value in wanted.template_kwargs.items() if name != "thinking_budget"}
    return replace(wanted, template_kwargs=kwargs)


def refusal(error: ApiError, turns: Turns, tools: list[Block], wanted: Conversation) -> ApiError:
    """What the shared path said of fields by their names in chat completions, in the names of this API."""
    given = {str(tool.get("name")): index for index, tool in enumerate(tools)}
    error = turns.named(error, "messages")
    error = schemas_named(error, [Place("tools", given[tool.name], "input_schema") for tool in wanted.tools])
    if isinstance(error, ContextLengthExceeded):  # agents look for these words, and shorten what they send
        facts = error.facts
        sizes = f"{facts['tokens']} tokens > {facts['limit']} maximum" if facts else error.message
        error.message, error.place = f"prompt is too long: {sizes}", None
    return moved(error, _PLACES)


def sampling(asked: MessagesRequest) -> SamplingParams:
    fields = {name: getattr(asked, name) for name in SamplingParams.__struct_fields__}
    if asked.stop_sequences is not None:
        fields["stop"] = asked.stop_sequences
    wanted = asked.output_config.format if asked.output_config is not None else None
    wanted = wanted or asked.output_format
    if wanted is not None:
        fields["structured_outputs"] = StructuredOutputs(json=wanted.schema, disable_additional_properties=True)
    return SamplingParams(**fields)


def turns_of(system: str | list[Block] | None, messages: list[MessageParam]) -> Turns:
    turns = Turns()
    if system:
        blocks = [text_part(system)] if isinstance(system, str) else system
        parts = [_part(block, Place("system", i)) for i, block in enumerate(blocks)]
        if parts := [part for part in parts if not part["text"].startswith(BILLING)]:
            turns.say("system", parts, Place("system"))
    for index, message in enumerate(messages):
        _add(turns, message, Place("messages", index))
    return turns


def _add(turns: Turns, message: MessageParam, place: Place) -> None:
    content = message.content
    blocks = [text_part(content)] if isinstance(content, str) else content
    if message.role == "assistant":
        turns.say("assistant", [], place)  # an empty turn is a turn
        for index, block in enumerate(blocks):
            _add_said(turns, block, place / "content" / index)
    elif message.role == "user":
        parts: list[Part] = []
        for index, block in enumerate(blocks):
            at = place / "content" / index
            if block.get("type") != "tool_result":
                parts.append(_part(block, at))
                continue
            if parts:
                turns.say("user", parts, place)
                parts = []
            turns.result(text_of(block, "tool_use_id", at), _result(block, at), at)
        if parts:
            turns.say("user", parts, place)
    elif message.role == "system":
        turns.say("system", [_part(block, place / "content" / i) for i, block in enumerate(blocks)], place)
    else:
        raise RequestError.about(place / "role", f"is {message.role[:40]!r}; it must be user, assistant or system")


def _add_said(turns: Turns, block: Block, place: Place) -> None:
    """One block of the assistant's turn."""
    kind = block.get("type")
    if kind == "thinking":
        if text := text_of(block, "thinking", place):
            turns.reasoning(text, place)
    elif kind == "tool_use":
        given = block.get("input")
        if not isinstance(given, dict):
            raise RequestError.about(place / "input", "must be an object")
        arguments = msgspec.json.encode(given).decode()
        turns.call(text_of(block, "id", place), text_of(block, "name", place), arguments, place)
    elif not (isinstance(kind, str) and (kind in PASSED_OVER or kind.endswith("_tool_result"))):
        turns.say("assistant", [_part(block, place)], place)


def _result(block: Block, place: Place) -> str:
    """What a tool gave, as text; a failure says so."""
    content = block.get("content")
    if content is None:
        text = ""
    elif isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text = "\n".join(str(_part(part, place / "content" / i)["text"]) for i, part in enumerate(content))
    else:
        raise RequestError.about(place / "content", "must be a text or a list of blocks")
    if block.get("is_error") is True and "error" not in text[:40].lower():
        return f"Error: {text}" if text else "Error"
    return text


def _part(block: Any, place: Place) -> Part:
    """A block that is text, or holds it."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return text_part(text_of(block, "text", place))
    source = block.get("source") if isinstance(block, dict) else None
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        title = f"{block['title']}\n" if isinstance(block.get("title"), str) else ""
        return text_part(title + text_of(source, "data", place / "source"))
    if kind == "search_result" and isinstance(block.get("content"), list):
        said = [_part(part, place / "content" / i)["text"] for i, part in enumerate(block["content"])]
        return text_part("\n".join([str(block.get("title", "")), str(source or ""), *said]))
    if kind == "tool_reference":
        return text_part(text_of(block, "tool_name", place))
    if isinstance(kind, str):
        raise Unsupported(f"{place}: blocks of type {kind[:40]!r} are not supported; send text", param=place)
    raise RequestError.about(place, "must be an object with a type")
