"""Tools over HTTP: what is asked, what the model is shown, what comes back, streamed and whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from patience import PATIENCE_S
from server_harness import HELLO, Api, Call, error_of, events, run

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.server.core.conversation import Conversation

PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}
WEATHER = {"type": "function", "function": FUNCTION}
ADD = {"type": "function", "function": {"name": "add"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def joined(chunks: list[Any]) -> tuple[dict[str, Any], str | None]:
    """The message that a client puts together, and the reason; checks the order of its parts."""
    assert chunks.pop() == "[DONE]"
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        delta, reason = choice["delta"], choice["finish_reason"]
        for key in ("content", "reasoning", "reasoning_content"):
            message[key] += delta.get(key, "")
        for part in delta.get("tool_calls", []):
            if part["index"] == len(message["tool_calls"]):
                assert part["id"] and part["type"] == "function" and part["function"]["name"]
                message["tool_calls"].append({"name": part["function"]["name"], "arguments": ""})
            else:
                assert set(part) == {"index", "function"} and set(part["function"]) == {"arguments"}
                assert part["index"] == len(message["tool_calls"]) - 1
            message["tool_calls"][-1]["arguments"] += part["function"]["arguments"]
    return message, reason


async def both(api: Api, **body: Any) -> tuple[dict[str, Any], str]:
    """The choice of the whole answer, after making sure that the streamed one says the same."""
    response = await api.chat(**body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    message = choice["message"]
    streamed, reason = joined(events((await api.chat(**body, stream=True)).text))
    assert reason == choice["finish_reason"]
    assert streamed["content"] == (message["content"] or "")
    assert streamed["reasoning"] == streamed["reasoning_content"] == message.get("reasoning", "")
    assert streamed["tool_calls"] == [call["function"] for call in message.get("tool_calls", [])]
    return message, reason


def test_a_call() -> None:
    async def test(api: Api) -> None:
        message, reason = await both(api, tools=[WEATHER])
        assert reason == "tool_calls" and message["content"] is None
        (call,) = message["tool_calls"]
        assert call["type"] == "function" and call["id"].startswith("call_")
        assert call["function"]["name"] == "get_weather" and json.loads(call["function"]["arguments"]) == {
            "city": "Bern"
        }
        usage = (await api.chat(tools=[WEATHER])).json()["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}

    run(test, reply=CALL)


def test_text_and_several_calls() -> None:
    async def test(api: Api) -> None:
        message, reason = await both(api, tools=[ADD, WEATHER])
        assert message["content"] == "Both:" and len(message["tool_calls"]) == 2 and reason == "tool_calls"
        message, reason = await both(api, tools=[ADD, WEATHER], parallel_tool_calls=False)
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather"]
        assert reason == "tool_calls"
        await api.settled()
        assert api.engine.aborts == 2  # after the first call nobody waits for the rest

    run(test, reply=f'Both:\n{CALL}\n<tool_call>{{"name": "add"}}</tool_call>')


def test_cut_off_by_a_limit() -> None:
    async def test(api: Api) -> None:
        message, reason = await both(api, tools=[WEATHER], max_tokens=61)
        assert reason == "length"
        arguments = message["tool_calls"][0]["function"]["arguments"]
        assert arguments == '{"city": "Be'

    run(test, reply=CALL)


def test_what_only_looks_like_a_call_is_content() -> None:
    text = '<tool_call>{"name": "rm", "arguments": {}}</tool_call> <tool_call>{"name": "get_w'

    async def test(api: Api) -> None:
        message, reason = await both(api, tools=[WEATHER])
        assert message["content"] == text and "tool_calls" not in message and reason == "stop"
        message, reason = await both(api)
        assert message["content"] == text

    run(test, reply=text)


def test_none_is_text() -> None:
    async def test(api: Api) -> None:
        for body in ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}, {}):
            message, reason = await both(api, **body)
            assert message["content"] == CALL and reason == "stop"

    run(test, reply=CALL)


def test_the_deprecated_names() -> None:
    async def test(api: Api) -> None:
        for choice in ("auto", {"name": "get_weather"}):
            body = {"functions": [FUNCTION], "function_call": choice}
            (answer,) = (await api.chat(**body)).json()["choices"]
            assert answer["finish_reason"] == "function_call" and "tool_calls" not in answer["message"]
            call = answer["message"]["function_call"]
            chunks = events((await api.chat(**body, stream=True)).text)[:-1]
            deltas = [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks]
            parts = [delta for delta in deltas if delta]
            assert parts[0]["name"] == call["name"] == "get_weather" and all("name" not in p for p in parts[1:])
            assert "".join(part["arguments"] for part in parts) == call["arguments"] == '{"city": "Bern"}'
            assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
        error = error_of(await api.chat(functions=[{"name": "f", "parameters": {"type": 5}}]), 400)
        assert error["param"] == "functions[0].parameters"
        assert (
            error_of(await api.chat(functions=[FUNCTION], function_call={"name": "g"}), 400)["param"] == "function_call"
        )

    run(test, reply=CALL)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 200}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [ADD, {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
         "tools[1].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": 5}}}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": [1]}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
         "tools[0].function.parameters"),
        ({"tools": "get_weather"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {}}, "tool_choice.type"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ],
)  # fmt: skip
def test_refused(body: dict[str, Any], param: str) -> None:
    async def test(api: Api) -> None:
        for stream in (False, True):
            assert error_of(await api.chat(**body, stream=stream), 400)["param"] == param

    run(test)


def test_deep_and_large_schemas_are_refused() -> None:
    """T-DEEP, for tools that nothing is enforced of."""

    async def test(api: Api) -> None:
        deep: dict[str, Any] = {"type": "object"}
        for _ in range(400):
            deep = {"type": "object", "properties": {"a": deep}}
        for parameters in (deep, {"allOf": [{"type": "object"}] * 30_000}):
            tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
            assert error_of(await api.chat(tools=[tool]), 400)["param"].startswith("tools")
        assert error_of(await api.chat(tools=[WEATHER] * 2000), 400)["param"] == "tools"

    run(test)


# -- what the model is shown


class Shown:
    """Takes the place of the rendering; keeps what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from octavo.client.conversation import Prompter

        self.conversation: Conversation | None = None
        self.text = ""
        encode = Prompter.encode

        def spy(prompter: Prompter, conversation: Conversation, max_tokens: int | None = None) -> list[int]:
            self.conversation, self.text = conversation, prompter.render(conversation)
            return encode(prompter, conversation, max_tokens)

        monkeypatch.setattr(Prompter, "encode", spy)


def test_models_that_know_no_tools_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)

    async def test(api: Api) -> None:
        await api.chat(tools=[WEATHER])
        system, user = shown.text.split("<|im_end|>")[:2]
        assert (
            system.startswith("<|im_start|>system\n") and '"name": "get_weather"' in system and "<tool_call>" in system
        )
        assert user.endswith("hi")
        await api.chat(messages=[{"role": "developer", "content": "Be brief."}, *HELLO], tools=[WEATHER])
        assert (
            shown.text.startswith("<|im_start|>system\nBe brief.\n\n") and shown.text.count("<|im_start|>system") == 1
        )
        for body in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            await api.chat(**body)
            assert "get_weather" not in shown.text
        choice = {"mode": "auto", "tools": [NAMED]}
        await api.chat(tools=[WEATHER, ADD], tool_choice={"type": "allowed_tools", "allowed_tools": choice})
        assert "get_weather" in shown.text and '"add"' not in shown.text

    run(test)


TURNS: list[Any] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
     "tool_calls": [
         {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'}},
         {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Ulm"}}}]},
    {"role": "tool", "tool_call_id": "a", "content": "sun"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "rain"}]},
]  # fmt: skip


def test_calls_and_results_in_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)

    async def test(api: Api) -> None:
        message, _ = await both(api, messages=TURNS, tools=[WEATHER])
        assert message["content"]
        assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>' in shown.text
        assert (
            "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
            in shown.text
        )
        older = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}},
            {"role": "function", "name": "get_weather", "content": "sun"},
        ]
        await both(api, messages=older, functions=[FUNCTION])
        assert '{"name": "get_weather", "arguments": {}}' in shown.text and "<tool_response>\nsun" in shown.text

    run(test)


BROKEN = [
    '{"city": "Be',
    "not json",
    "[1]",
    '"text"',
    "7",
    "",
    "null",
    "{'a': 1}",
    "\u0000",
    '{"a": NaN',
    "{" * 300,
    None,
    {},
]


@pytest.mark.parametrize("arguments", BROKEN, ids=lambda a: str(a)[:12])
def test_broken_calls_in_the_history_do_not_break_later_turns(arguments: Any) -> None:
    turns = json.loads(json.dumps(TURNS))
    turns[1]["tool_calls"][0]["function"]["arguments"] = arguments
    turns[1]["tool_calls"][1] = {"type": "custom", "custom": {"name": "shell", "input": "ls"}}
    turns += [{"role": "assistant", "content": None}, {"role": "tool", "content": None, "tool_call_id": "nobody"}]
    turns += [
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "?"},
    ]

    async def test(api: Api) -> None:
        assert (await api.chat(messages=turns, tools=[WEATHER])).status_code == 200
        assert (await api.chat(messages=turns)).status_code == 200

    run(test)


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({"id": "a", "type": "function"}, "messages[1].tool_calls[0].function"),
        ({"function": {"arguments": "{}"}}, "messages[1].tool_calls[0].function.name"),
        ({"function": {"name": "f", "arguments": 7}}, "messages[1].tool_calls[0].function.arguments"),
    ],
)
def test_calls_without_their_parts(call: dict[str, Any], param: str) -> None:
    async def test(api: Api) -> None:
        turns = [*HELLO, {"role": "assistant", "tool_calls": [call]}, *HELLO]
        assert error_of(await api.chat(messages=turns), 400)["param"] == param

    run(test)


# -- options, reasoning


def test_parsers_by_option() -> None:
    async def test(api: Api) -> None:
        message, reason = await both(api, tools=[WEATHER])
        assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Bern"}
        assert reason == "tool_calls" and message["content"] is None

    config = ServerConfig(tool_call_parser="llama3_json")
    run(test, config, reply='{"name": "get_weather", "parameters": {"city": "Bern"}}')
    run(test, ServerConfig(tool_call_parser="pythonic"), reply='[get_weather(city="Bern")]')
    with pytest.raises(ConfigError, match=r"--tool-call-parser 'nonesuch' is not known; there are .*hermes"):
        run(test, ServerConfig(tool_call_parser="nonesuch"))
    with pytest.raises(ConfigError, match=r"--reasoning-parser 'nonesuch' is not known"):
        run(test, ServerConfig(reasoning_parser="nonesuch"))


def test_reasoning() -> None:
    async def test(api: Api) -> None:
        message, reason = await both(api, tools=[WEATHER], stop=["STOP"])
        assert message["reasoning_content"] == message["reasoning"] == "STOP? No."
        assert message["content"] == "So:" and len(message["tool_calls"]) == 1 and reason == "tool_calls"
        body = (await api.chat(logprobs=True)).json()
        (choice,) = body["choices"]
        assert choice["message"]["content"] == f"So:\n{CALL}"
        assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == f"So:\n{CALL}"
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(
            ">STOP? No.</think>"
        )  # from the tag on
        hidden = (await api.chat(include_reasoning=False)).json()["choices"][0]["message"]
        assert hidden["content"] and "reasoning" not in hidden and "reasoning_content" not in hidden

    run(test, ServerConfig(reasoning_parser="qwen3"), reply=f"<think>STOP? No.</think>\n\nSo:\n{CALL}")


def test_reasoning_is_text_where_the_model_has_none() -> None:
    async def test(api: Api) -> None:
        message, _ = await both(api, reasoning_effort="high", chat_template_kwargs={"enable_thinking": True})
        assert message["content"] == "<think>a</think>b" and "reasoning" not in message

    run(test, reply="<think>a</think>b")


def test_reasoning_of_earlier_turns_comes_back() -> None:
    async def test(api: Api) -> None:
        for name in ("reasoning", "reasoning_content"):
            turns = [*HELLO, {"role": "assistant", "content": "b", name: "a"}, *HELLO]
            assert (await api.chat(messages=turns)).status_code == 200

    run(test)


def test_a_call_goes_on_after_an_engine_restart() -> None:
    """What was streamed stays; the channels go on where they were, in the reasoning as in the arguments."""

    async def test(api: Api) -> None:
        whole, _ = await both(api, tools=[WEATHER])
        for tokens in (12, 90, 150):
            before = api.engine.stats.generated_tokens
            call = Call(api.app, "/v1/chat/completions", {
                "messages": HELLO, "temperature": 0, "tools": [WEATHER], "stream": True, "reasoning_effort": "low",
            })  # fmt: skip
            while api.engine.stats.generated_tokens < before + tokens:
                await asyncio.sleep(0.001)
            api.engine.crash()
            api.engine.restart()
            await asyncio.wait_for(call.task, PATIENCE_S)
            message, reason = joined(events(call.text))
            assert reason == "tool_calls" and message["reasoning"] == whole["reasoning"]
            assert message["tool_calls"] == [made["function"] for made in whole["tool_calls"]]

    reply = f"<think>{'Where? ' * 10}</think>\n\nSo:\n{CALL}"
    run(test, ServerConfig(reasoning_parser="think"), reply=reply, step_delay=0.0005)
