"""The official client's helpers put tool calls and reasoning together rightly, strictly validated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel
from server_harness import live

from octavo.config import ServerConfig

REPLY = (
    "<think>Where?</think>\n\nBoth cities:\n"
    '<tool_call>\n{"name": "GetWeather", "arguments": {"city": "Köln 🌧"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "GetWeather", "arguments": {"city": "Bern"}}\n</tool_call>'
)
MESSAGES: list[Any] = [{"role": "user", "content": "Weather?"}]


class GetWeather(BaseModel):
    city: str


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    config = ServerConfig(reasoning_parser="qwen3", drain_timeout=5)
    with live(config, reply=REPLY) as server:
        base_url = server.url + "/v1"
        with OpenAI(base_url=base_url, api_key="none", max_retries=0, _strict_response_validation=True) as found:
            yield found


def test_the_streaming_helper_arrives_at_the_plain_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake-model", "messages": MESSAGES, "temperature": 0}
    asked["tools"] = [pydantic_function_tool(GetWeather)]
    plain = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_completion().choices[0]
    assert plain.finish_reason == streamed.finish_reason == "tool_calls"
    assert plain.message.content == streamed.message.content == "Both cities:"
    assert plain.message.tool_calls is not None and streamed.message.tool_calls is not None
    told = [(c.function.name, c.function.arguments) for c in plain.message.tool_calls if c.type == "function"]
    assert told == [(c.function.name, c.function.arguments) for c in streamed.message.tool_calls]
    assert [json.loads(arguments) for _, arguments in told] == [{"city": "Köln 🌧"}, {"city": "Bern"}]
    parsed = [call.function.parsed_arguments for call in streamed.message.tool_calls]
    assert parsed == [GetWeather(city="Köln 🌧"), GetWeather(city="Bern")]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.arguments for event in done] == [arguments for _, arguments in told]
    assert plain.message.model_extra is not None and plain.message.model_extra["reasoning_content"] == "Where?"


def test_parse(client: OpenAI) -> None:
    found = client.chat.completions.parse(
        model="fake-model", messages=MESSAGES, temperature=0, tools=[pydantic_function_tool(GetWeather)]
    )
    calls = found.choices[0].message.tool_calls
    assert calls is not None and [call.function.parsed_arguments for call in calls][1] == GetWeather(city="Bern")
    assert found.usage is not None and found.usage.completion_tokens_details is not None
    assert (found.usage.completion_tokens_details.reasoning_tokens or 0) > 0


def test_several_turns(client: OpenAI) -> None:
    tools: list[Any] = [pydantic_function_tool(GetWeather)]
    first = client.chat.completions.create(model="fake-model", messages=MESSAGES, tools=tools, temperature=0)
    message = first.choices[0].message
    assert message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in message.tool_calls]
    turns: list[Any] = [*MESSAGES, message, *results]
    again = client.chat.completions.create(model="fake-model", messages=turns, tools=tools, tool_choice="none")
    assert again.choices[0].finish_reason == "stop" and again.choices[0].message.content
