"""The responses and messages faces with the demo model, through the official SDKs, strictly: what is streamed is what
is answered at once, on every face the same text, and a tool is called and its result read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from served import Octavo

MODEL = "smollm2"
GREEDY = {"temperature": 0}
QUESTION = "Why is the sky blue? Answer in one sentence."
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def octavo(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octavo]:
    options = ["--port", "0", "--threads", "1", "--kv-cache-memory", "96MiB", "--max-model-len", "1024"]
    served = Octavo(tmp_path_factory.mktemp("faces"), "serve", str(demo_gguf), "--served-model-name", MODEL, *options)
    try:
        yield served.started()
    finally:
        served.close()


@pytest.fixture
def client(octavo: Octavo) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{octavo.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, _strict_response_validation=True) as found:
        yield found


@pytest.fixture
def claude(octavo: Octavo) -> Iterator[anthropic.Anthropic]:
    url = f"http://127.0.0.1:{octavo.port}"
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, _strict_response_validation=True) as found:
        yield found


def test_every_face_gives_the_same_text(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=24, **GREEDY)
    text = chat.choices[0].message.content
    assert text

    response = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, **GREEDY)
    assert response.output_text == text
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=24, **GREEDY) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    last = events[-1]
    assert last.type == f"response.{response.status}" and last.response.usage is not None
    assert last.response.usage.output_tokens == response.usage.output_tokens  # type: ignore[union-attr]

    asked: Any = {"model": MODEL, "messages": messages, "max_tokens": 24, "extra_body": GREEDY}
    message = claude.messages.create(**asked)
    assert [block.text for block in message.content if block.type == "text"] == [text]
    with claude.messages.stream(**asked) as told:
        assert "".join(told.text_stream) == text
        whole = told.get_final_message()
    assert whole.stop_reason == message.stop_reason and whole.usage.output_tokens == message.usage.output_tokens
    counted = claude.messages.count_tokens(model=MODEL, messages=messages)
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert chat.usage is not None and counted.input_tokens == chat.usage.prompt_tokens


def test_a_stored_response_is_gone_on_from(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, **GREEDY)
    assert client.responses.retrieve(first.id).output == first.output
    (item,) = client.responses.input_items.list(first.id)
    assert item.type == "message" and item.role == "user"
    second = client.responses.create(
        model=MODEL, input="Again.", previous_response_id=first.id, max_output_tokens=8, **GREEDY
    )
    history: Any = [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Again."},
    ]
    chat = client.chat.completions.create(model=MODEL, messages=history, max_tokens=8, **GREEDY)
    assert second.output_text == chat.choices[0].message.content
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


class Person(pydantic.BaseModel, extra="forbid"):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=120)


def test_a_schema_is_kept_on_both_faces(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    text = "Bob is 30 years old. Write him down as JSON."
    parsed = client.responses.parse(model=MODEL, input=text, text_format=Person, max_output_tokens=60, **GREEDY)
    assert isinstance(parsed.output_parsed, Person)
    with client.responses.stream(model=MODEL, input=text, text_format=Person, max_output_tokens=60, **GREEDY) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    message = claude.messages.create(
        model=MODEL, max_tokens=60, messages=[{"role": "user", "content": text}],
        output_config={"format": {"type": "json_schema", "schema": Person.model_json_schema()}}, extra_body=GREEDY,
    )  # fmt: skip
    assert Person.model_validate_json("".join(b.text for b in message.content if b.type == "text"))


def test_a_tool_loop_over_responses(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "description": "The weather.", "parameters": WEATHER,
                   "strict": True}]  # fmt: skip
    asked: Any = {"model": MODEL, "input": "How is the weather in Paris?", "tools": tools, "max_output_tokens": 80}
    first = client.responses.create(**asked, tool_choice="required", parallel_tool_calls=False, **GREEDY)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "weather" and set(json.loads(call.arguments)) == {"city"}
    with client.responses.stream(**asked, tool_choice="required", parallel_tool_calls=False, **GREEDY) as stream:
        events = list(stream)
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in deltas) == call.arguments
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 20 degrees"}]
    second = client.responses.create(
        model=MODEL, input=result, tools=tools, tool_choice="none", previous_response_id=first.id,
        max_output_tokens=16, **GREEDY,
    )  # fmt: skip
    assert second.output_text
    again: Any = [{"role": "user", "content": asked["input"]}, call.to_dict(), *result]
    third = client.responses.create(
        model=MODEL, input=again, tools=tools, tool_choice="none", max_output_tokens=16, **GREEDY
    )
    assert third.output_text == second.output_text


def test_a_tool_loop_over_messages(claude: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
    tools: Any = [{"name": "weather", "description": "The weather.", "input_schema": WEATHER}]
    asked: Any = {"model": MODEL, "max_tokens": 80, "tools": tools, "extra_body": GREEDY, "messages": question}
    choice: Any = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    first = claude.messages.create(**asked, tool_choice=choice)
    assert first.stop_reason == "tool_use"
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert call.name == "weather" and set(call.input) == {"city"}
    with claude.messages.stream(**asked, tool_choice=choice) as stream:
        streamed = stream.get_final_message()
    assert [b.input for b in streamed.content if b.type == "tool_use"] == [call.input]
    assert streamed.stop_reason == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    history: Any = [*question, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = claude.messages.create(**{**asked, "messages": history, "max_tokens": 16}, tool_choice={"type": "none"})
    assert second.stop_reason in ("end_turn", "max_tokens") and second.content[0].type == "text"
