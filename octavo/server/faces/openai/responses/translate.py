"""A request of /v1/responses in the terms that all faces share, and the response object around what came of it.

Called by the responses handlers. Everything here raises RequestError in the words of this API.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from octavo.client.conversation import Conversation
from octavo.client.prepare import first_given
from octavo.errors import ApiError, Place, QueueFull, RequestError
from octavo.server.core.errors import clean
from octavo.server.core.history import checked_messages, template_kwargs
from octavo.server.core.turns import Turns, moved, reworded, schemas_named, text_part
from octavo.server.faces.openai.protocol.responses import (
    LOGPROBS,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningConfig,
    ResponseFailure,
    ResponseObject,
    ResponseReasoning,
    ResponsesRequest,
    ResponseText,
    ResponseUsage,
    TextConfig,
    TextFormat,
)
from octavo.server.faces.openai.protocol.shared import Item
from octavo.server.faces.openai.responses.items import add_items
from octavo.server.faces.openai.responses.output import Output
from octavo.server.faces.openai.responses.tools import Functions, shown, tool_choice
from octavo.types import Metrics, SamplingParams, StructuredOutputs

_PLACES = {
    "max_tokens": Place("max_output_tokens"),
    "max_completion_tokens": Place("max_output_tokens"),
    "reasoning_effort": Place("reasoning", "effort"),
}


_TOLD_BACK = (
    "instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key",
    "safety_identifier", "user",
)  # fmt: skip
"""Fields of a request that its response repeats."""


def turns_of(asked: ResponsesRequest, before: Sequence[list[Item]], items: list[Item]) -> Turns:
    """`before`: the items of earlier responses, `items`: those of this input."""
    turns = Turns()
    if asked.instructions:
        turns.say("system", [text_part(asked.instructions)], Place("instructions"))
    for earlier in before:
        add_items(turns, earlier, "previous_response_id")
    add_items(turns, items)
    if not turns.places:
        raise RequestError.about("input", "must not be empty")
    return turns


def conversation(asked: ResponsesRequest, turns: Turns, found: Functions) -> Conversation:
    choice, named, allowed = tool_choice(asked.tool_choice, found)
    with reworded(lambda error: turns.named(error, "input")):
        messages = checked_messages(turns.messages)
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    return Conversation(
        messages=messages,
        params=sampling(asked),
        tools=[tool for name, tool in found.tools.items() if allowed is None or name in allowed],
        tool_choice=choice,
        named_tool=named,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        template_kwargs=template_kwargs(asked.chat_template_kwargs, effort),
        structured_place=Place("text", "format") if asked.structured_outputs is None else Place("structured_outputs"),
    )


def sampling(asked: ResponsesRequest) -> SamplingParams:
    fields = {name: getattr(asked, name) for name in SamplingParams.__struct_fields__}
    fields["max_tokens"] = asked.max_tokens if asked.max_output_tokens is None else asked.max_output_tokens
    fields["logprobs"] = (asked.top_logprobs or 0) if asked.includes(LOGPROBS) else None
    fields["structured_outputs"] = structured(asked)
    return SamplingParams(**fields)


def structured(asked: ResponsesRequest) -> StructuredOutputs | None:
    wanted = asked.text.format if asked.text is not None else None
    if wanted is None or wanted.type == "text":
        return asked.structured_outputs
    if asked.structured_outputs is not None:
        raise RequestError("send either text.format or structured_outputs", param="text.format")
    if wanted.type == "json_object":
        return StructuredOutputs(json_object=True)
    if wanted.type != "json_schema":
        raise RequestError.about(
            "text.format.type", f"is {wanted.type[:40]!r}; it must be one of text, json_object, json_schema"
        )
    if wanted.schema is None:
        raise RequestError.about("text.format.schema", "is required with type json_schema")
    return StructuredOutputs(json=wanted.schema, disable_additional_properties=wanted.strict is True)


def shortened(wanted: Conversation) -> Conversation | None:
    """Without the oldest turns, at least a quarter of what there is: what is left begins with a user's message. None
    where only the last turn is left. For `truncation: "auto"`."""
    messages = wanted.messages
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    users = [i for i in range(start + 1, len(messages)) if messages[i].role == "user"]
    if not users:
        return None
    wished = start + (len(messages) - start + 3) // 4
    cut = next((i for i in users if i >= wished), users[-1])
    return replace(wanted, messages=[*messages[:start], *messages[cut:]])


def refusal(error: ApiError, turns: Turns, wanted: Conversation, found: Functions) -> ApiError:
    """What the shared path said of fields by their names in chat completions, in the names of this API."""
    error = turns.named(error, "input")
    error = schemas_named(error, [found.places[tool.name] for tool in wanted.tools])
    return moved(error, _PLACES)


# -- what comes out


def response(asked: ResponsesRequest, header: Mapping[str, Any], defaults: SamplingParams) -> ResponseObject:
    """As it is announced, before anything has come."""
    text, reasoning = asked.text or TextConfig(), asked.reasoning or ReasoningConfig()
    return ResponseObject(
        **header,
        **{name: getattr(asked, name) for name in _TOLD_BACK},
        status="in_progress",
        output=[],
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        reasoning=ResponseReasoning(effort=reasoning.effort, summary=reasoning.summary),
        store=asked.store is not False,
        temperature=first_given(asked.temperature, defaults.temperature, 1.0),
        text=ResponseText(format=text.format or TextFormat(type="text"), verbosity=text.verbosity or "medium"),
        tool_choice=asked.tool_choice or "auto",
        tools=[shown(tool) for tool in asked.tools or ()],
        top_logprobs=asked.top_logprobs or 0,
        top_p=first_given(asked.top_p, defaults.top_p, 1.0),
        truncation=asked.truncation or "disabled",
        metadata=asked.metadata or {},
    )


def finished(begun: ResponseObject, output: Output, metrics: Metrics) -> ResponseObject:
    is_cut = output.finish_reason == "length"
    return msgspec.structs.replace(
        begun,
        status="incomplete" if is_cut else "completed",
        completed_at=None if is_cut else int(time.time()),
        incomplete_details=IncompleteDetails() if is_cut else None,
        output=output.items,
        usage=usage(metrics),
    )


def failed(begun: ResponseObject, output: Output, error: ApiError, metrics: Metrics) -> ResponseObject:
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = "server_error"
    if isinstance(error, QueueFull):
        code = "rate_limit_exceeded"
    elif isinstance(error, RequestError):
        code = "invalid_prompt"
    return msgspec.structs.replace(
        begun,
        status="failed",
        error=ResponseFailure(code=code, message=clean(error.message)),
        output=output.items,
        usage=usage(metrics),
    )


def usage(metrics: Metrics) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=metrics.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=metrics.cached_tokens),
        output_tokens=metrics.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=metrics.reasoning_tokens),
        total_tokens=metrics.prompt_tokens + metrics.completion_tokens,
    )
