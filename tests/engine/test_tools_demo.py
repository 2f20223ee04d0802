"""Tools with the demo model, offline: it was never taught to call, so that only the grammar can make it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from octavo import LLMEngine, Message, SamplingParams
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.text.toolcalls.tool import Tool

QUESTION = [Message("user", "What will the weather be in Paris?")]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
WEATHER = Tool(name="get_weather", description="The weather in a city.", parameters=SCHEMA)
SUM: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}
ADD = {"type": "function", "function": {"name": "add", "parameters": SUM}}
SCHEMAS = {"get_weather": SCHEMA, "add": SUM}


@pytest.fixture(scope="module")
def engine(demo_gguf: Path) -> Iterator[LLMEngine]:
    config = EngineConfig(
        model=str(demo_gguf), dtype="float32", max_model_len=1024, max_num_seqs=4, kv_cache_memory="64MiB", threads=1
    )
    with LLMEngine(config) as found:
        yield found


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_required_calls_are_made(engine: LLMEngine, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=400, n=2, logprobs=0)
    (output,) = engine.chat(QUESTION, params, tools=[WEATHER, ADD], tool_choice="required")
    for choice in output.outputs:
        assert choice.finish_reason == "tool_calls" and choice.text == "" and 1 <= len(choice.tool_calls) <= 8
        for call in choice.tool_calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_the_named_tool_is_called_once_and_streamed_as_told_whole(engine: LLMEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=200)
    (output,) = engine.chat(QUESTION, params, tools=[WEATHER, ADD], tool_choice="add")
    (call,) = output.outputs[0].tool_calls
    assert call.name == "add" and set(json.loads(call.arguments)) >= {"a", "b"}
    deltas = list(engine.stream_chat(QUESTION, params, tools=[WEATHER, ADD], tool_choice="add"))
    parts = [part for delta in deltas for part in delta.tool_calls]
    assert parts[0].name == "add" and len(parts) >= 3 and all(part.name is None for part in parts[1:])
    assert "".join(part.arguments for part in parts) == call.arguments
    assert deltas[-1].finish_reason == "tool_calls"


@pytest.mark.long
def test_turns_with_results(engine: LLMEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=200)
    messages: list[Message] = [*QUESTION]
    for result in ("21 degrees", "rain"):
        (output,) = engine.chat(messages, params, tools=[WEATHER], tool_choice="get_weather")
        (call,) = output.outputs[0].tool_calls
        function = {"name": call.name, "arguments": call.arguments}
        messages.append(Message("assistant", tool_calls=[{"id": call.id, "type": "function", "function": function}]))
        messages.append(Message("tool", result, tool_call_id=call.id))
    (output,) = engine.chat(messages, params, tools=[WEATHER], tool_choice="none")
    assert output.text and not output.outputs[0].tool_calls


def test_strict_tools_leave_text_as_it_is(engine: LLMEngine) -> None:
    """The demo model answers in words; the grammar of a strict tool, and its masks, change none of them."""
    strict = Tool(name="get_weather", parameters=SCHEMA, strict=True)
    free = Tool(name="get_weather", parameters=SCHEMA)
    params = SamplingParams(temperature=0, max_tokens=24)
    (held,) = engine.chat(QUESTION, params, tools=[strict])
    (plain,) = engine.chat(QUESTION, params, tools=[free])
    assert held.text == plain.text != ""
    started = [*QUESTION, Message("assistant", "Let me look.\n<tool_call>")]
    (output,) = engine.chat(started, params, tools=[strict], continue_final_message=True)
    assert output.token_ids  # what the message began is no call of this answer


def test_refused(engine: LLMEngine) -> None:
    for tools, choice in (([], "required"), ([WEATHER], "add"), ([{"type": "function"}], "auto")):
        with pytest.raises(RequestError):
            engine.chat(QUESTION, tools=tools, tool_choice=choice)  # type: ignore[arg-type]
