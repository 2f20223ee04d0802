"""Reasoning and tool calls on the responses and messages faces: read back alike streamed and plain, and shown to the
model again in the history. The fake engine says what a model would."""

from __future__ import annotations

from typing import Any

import pytest
from server_harness import Api, error_of, run
from test_messages import ask, joined, refused
from test_messages import named_events as message_events
from test_messages import prompt as prompt_of_messages
from test_responses import named_events, prompt, respond

from octavo.config import ServerConfig

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
REPLY = "<think>\nHm, ü.\n</think>\n\nLet me see.\n" + CALL % ("weather", '{"city": "Paris"}')
REPLY += "\n" + CALL % ("clock", "{}") + "\nAnd then?"
THINKS = ServerConfig(reasoning_parser="think")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMES = ("weather", "clock")
FUNCTIONS: list[Any] = [{"type": "function", "name": name, "parameters": SCHEMA, "strict": False} for name in NAMES]
TOOLS: list[Any] = [{"name": name, "description": "d", "input_schema": SCHEMA} for name in NAMES]


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each item with a fresh id is as another."""
    assert len({item["id"] for item in items}) == len(items)
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


def test_a_response_has_its_reasoning_its_text_and_its_calls() -> None:
    async def test(api: Api) -> None:
        whole = (await respond(api, tools=FUNCTIONS, include=["reasoning.encrypted_content"])).json()
        kinds = [(item["type"], item["status"]) for item in whole["output"]]
        assert kinds == [
            ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"),
            ("function_call", "completed"), ("message", "completed"),
        ]  # fmt: skip
        thought, said, first, second, after = whole["output"]
        assert thought["content"] == [{"type": "reasoning_text", "text": "Hm, ü."}] and thought["summary"] == []
        assert thought["id"].startswith("rs_") and thought["encrypted_content"]
        assert (
            said["content"][0]["text"].strip() == "Let me see." and after["content"][0]["text"].strip() == "And then?"
        )
        assert (first["name"], first["arguments"]) == ("weather", '{"city": "Paris"}')
        assert (second["name"], second["arguments"]) == ("clock", "{}")
        assert first["call_id"] != second["call_id"] and first["id"].startswith("fc_")
        assert 0 < whole["usage"]["output_tokens_details"]["reasoning_tokens"] < whole["usage"]["output_tokens"]

        fields = {"tools": FUNCTIONS, "include": ["reasoning.encrypted_content"], "stream": True}
        events = named_events((await respond(api, **fields)).text)
        last = events[-1]["response"]
        assert without_ids(last["output"]) == without_ids(whole["output"]) and last["usage"] == whole["usage"]
        check_order(events)

        unsealed = (await respond(api, tools=FUNCTIONS)).json()["output"]
        assert all(None not in item.values() for item in unsealed) and "encrypted_content" not in unsealed[0]

    run(test, THINKS, reply=REPLY)


def check_order(events: list[dict[str, Any]]) -> None:
    """Every item is announced, grows and ends, one after the other; what came in pieces is what stands at its end."""
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == events[-1]["response"]["output"]
    for index, end in enumerate(done):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added" and own[-1] is end
        assert own[0]["item"]["status"] == "in_progress" and own[0]["item"]["id"] == end["item"]["id"]
        numbers = [event["sequence_number"] for event in own]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        pieces = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        item = end["item"]
        assert pieces == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        (closing,) = [event for event in own if event["type"].endswith(("text.done", "arguments.done"))]
        assert pieces == closing.get("text", closing.get("arguments"))


def check_words(text: str, *words: str) -> None:
    """They are there, in this order."""
    at = 0
    for word in words:
        at = text.find(word, at)
        assert at >= 0, f"{word!r} is not where it should be in {text}"
        at += len(word)


def test_a_response_that_breaks_off_in_a_call_is_incomplete_there() -> None:
    async def test(api: Api) -> None:
        for length in range(1, len(REPLY.encode())):
            body = (await respond(api, tools=FUNCTIONS, max_output_tokens=length, store=False)).json()
            assert body["status"] == "incomplete" and body["output"][-1]["status"] == "incomplete"
            assert all(item["status"] == "completed" for item in body["output"][:-1])

    run(test, THINKS, reply=REPLY)


def test_a_loop_of_responses_is_shown_to_the_model() -> None:
    async def test(api: Api) -> None:
        first = (await respond(api, input="Q", tools=FUNCTIONS)).json()
        calls = [item for item in first["output"] if item["type"] == "function_call"]
        results = [
            {"type": "function_call_output", "call_id": calls[0]["call_id"], "output": "sunny"},
            {"type": "function_call_output", "call_id": calls[1]["call_id"],
             "output": [{"type": "input_text", "text": "noon"}]},
        ]  # fmt: skip
        seen = await prompt(api, input=results, previous_response_id=first["id"], tools=FUNCTIONS)
        history = [{"role": "user", "content": "Q"}, *first["output"], *results]
        assert await prompt(api, input=history, tools=FUNCTIONS) == seen
        check_words(seen, "Q>", "Let me see.", "And then?", '"weather"', "Paris", '"clock"', ">", "sunny", "noon")

    run(test, THINKS, reply=REPLY)


def test_reasoning_comes_back_from_its_sealed_form() -> None:
    async def test(api: Api) -> None:
        body = (await respond(api, include=["reasoning.encrypted_content"])).json()
        thought = body["output"][0]
        stripped = {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]}
        other = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "gAAA"}
        for item in (thought, stripped, other, {"type": "reasoning", "summary": []}):
            assert (await respond(api, input=[{"role": "user", "content": "Q"}, item])).status_code == 200

    run(test, THINKS, reply=REPLY)


def test_calls_of_tools_that_are_no_functions_are_shown_from_the_history() -> None:
    async def test(api: Api) -> None:
        items: list[Any] = [
            {"role": "user", "content": "Q"},
            {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "patched"},
            {"type": "local_shell_call", "id": "l1", "call_id": "c2", "status": "completed",
             "action": {"type": "exec", "command": ["ls"], "env": {}}},
            {"type": "local_shell_call_output", "id": "c2", "output": "a.txt"},
            {"type": "shell_call", "call_id": "c3", "action": {"commands": ["pwd"]}},
            {"type": "shell_call_output", "call_id": "c3", "output": [{"stdout": "/x", "stderr": "", "outcome": {}}]},
            {"type": "apply_patch_call", "call_id": "c4", "status": "completed", "operation": {"type": "delete_file"}},
            {"type": "apply_patch_call_output", "call_id": "c4", "status": "completed", "output": "deleted"},
            {"type": "mcp_call", "id": "m1", "name": "find", "arguments": '{"q": 1}', "server_label": "s",
             "output": "hit"},
        ]  # fmt: skip
        seen = await prompt(api, input=items)
        check_words(seen, "patch", "*** Begin", "patched", "local_shell", "ls", "a.txt", "shell", "pwd", "/x")
        check_words(seen, "/x", "apply_patch", "delete_file", "deleted", "find", "hit")

    run(test)


def test_allowed_tools_narrow_the_choice() -> None:
    async def test(api: Api) -> None:
        choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]}
        seen = await prompt(api, tools=FUNCTIONS, tool_choice=choice)
        assert '"clock"' in seen and '"weather"' not in seen
        assert '"weather"' not in await prompt(api, tools=FUNCTIONS, tool_choice="none")
        body = (await respond(api, tools=FUNCTIONS, tool_choice=choice)).json()
        assert body["tool_choice"] == choice and len(body["tools"]) == 2

    run(test)


def test_functions_of_a_namespace_are_called_in_it() -> None:
    async def test(api: Api) -> None:
        space = {"type": "namespace", "name": "sky", "description": "d", "tools": [FUNCTIONS[0], {"type": "custom"}]}
        for tools, names in (([space], ["sky"]), ([space, FUNCTIONS[0]], ["sky", None])):
            seen = await prompt(api, tools=tools)
            assert [seen.count('"name": "sky__weather"'), seen.count('"name": "weather"')] == [1, len(names) - 1]
            body = (await respond(api, tools=tools)).json()
            (call,) = [item for item in body["output"] if item["type"] == "function_call"]
            assert (call["namespace"], call["name"]) == ("sky", "weather")
            events = named_events((await respond(api, tools=tools, stream=True)).text)
            check_order(events)
            assert [e["name"] for e in events if e["type"].endswith("arguments.done")] == ["weather"]
            assert "sky__weather" in await prompt(api, input=[{"role": "user", "content": "Q"}, call])
            choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
            assert ('"weather"' in await prompt(api, tools=tools, tool_choice=choice)) == (None in names)
        error = error_of(await respond(api, tools=[{**space, "tools": [{**FUNCTIONS[0], "name": "a b"}]}]), 400)
        assert error["param"] == "tools[0].tools[0].name"
        strict = {"type": "function", "name": "f", "parameters": BAD, "strict": True}
        error = error_of(await respond(api, tools=[{**space, "tools": [strict]}]), 400)
        assert error["param"].startswith("tools[0].tools[0].parameters")

    run(test, THINKS, reply=CALL % ("sky__weather", '{"city": "Rome"}'))


BAD = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?<=a)b"}}, "additionalProperties": False}


def test_a_schema_that_cannot_be_kept_is_refused_by_its_place() -> None:
    async def test(api: Api) -> None:
        web = {"type": "web_search"}
        bad = {"type": "function", "name": "f", "parameters": BAD, "strict": True}
        error = error_of(await respond(api, tools=[web, FUNCTIONS[0], bad]), 400)
        assert error["param"].startswith("tools[2].parameters") and "function.parameters" not in error["message"]
        formatted = {"format": {"type": "json_schema", "name": "x", "schema": BAD}}
        assert error_of(await respond(api, text=formatted), 400)["param"].startswith("text.format")
        given = [{"type": "web_search_20250305", "name": "web"}, {"name": "f", "input_schema": BAD, "strict": True}]
        assert "tools[1].input_schema" in refused(await ask(api, tools=given), 400)
        config = {"format": {"type": "json_schema", "schema": BAD}}
        assert "output_config.format" in refused(await ask(api, output_config=config), 400)

    run(test)


def test_a_message_has_its_thinking_its_text_and_its_calls() -> None:
    async def test(api: Api) -> None:
        fields = {"tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
        whole = (await ask(api, **fields)).json()
        thought, said, first, second, after = whole["content"]
        assert thought["type"] == "thinking" and thought["thinking"] == "Hm, ü." and thought["signature"]
        assert said["text"].strip() == "Let me see." and after["text"].strip() == "And then?"
        assert (first["type"], first["name"], first["input"]) == ("tool_use", "weather", {"city": "Paris"})
        assert (second["name"], second["input"]) == ("clock", {}) and first["id"] != second["id"]
        assert whole["stop_reason"] == "tool_use"
        message = joined(message_events((await ask(api, **fields, stream=True)).text))
        for body in (message, whole):
            body["id"] = body["content"][2]["id"] = body["content"][3]["id"] = None
        assert message == whole

    run(test, THINKS, reply=REPLY)


def test_a_message_that_breaks_off_in_a_call_keeps_what_there_is() -> None:
    async def test(api: Api) -> None:
        for length in range(1, len(REPLY.encode())):
            body = (await ask(api, tools=TOOLS, max_tokens=length)).json()
            assert body["stop_reason"] == "max_tokens" and body["content"]
            for block in body["content"]:
                if block["type"] == "tool_use":
                    assert isinstance(block["input"], dict)

    run(test, THINKS, reply=REPLY)


def test_a_loop_of_messages_is_shown_to_the_model() -> None:
    async def test(api: Api) -> None:
        first = (await ask(api, tools=TOOLS, max_tokens=2000)).json()["content"]
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": first[2]["id"], "content": "sunny"},
            {"type": "tool_result", "tool_use_id": first[3]["id"], "is_error": True,
             "content": [{"type": "text", "text": "it stopped"}, {"type": "tool_reference", "tool_name": "watch"}]},
            {"type": "tool_result", "tool_use_id": first[3]["id"]},
            {"type": "text", "text": "Go on."},
        ]  # fmt: skip
        messages = [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": results},
        ]
        seen = await prompt_of_messages(api, messages=messages, tools=TOOLS)
        words = ("Let me see.", "And then?", "Paris", '"clock"', "sunny", "Error: it stopped\nwatch")
        check_words(seen, "Q><assistant", *words, "<user\nGo on.><assistant")

    run(test, THINKS, reply=REPLY)


@pytest.mark.parametrize(
    ("kind", "name", "known"),
    [
        ("bash_20250124", "bash", "restart"),
        ("text_editor_20250728", "str_replace_based_edit_tool", "insert_line"),
        ("memory_20250818", "memory", "old_path"),
    ],
)
def test_client_tools_by_type_have_a_known_schema(kind: str, name: str, known: str) -> None:
    async def test(api: Api) -> None:
        seen = await prompt_of_messages(api, tools=[{"type": kind, "name": name}])
        assert f'"{name}"' in seen and known in seen
        for server_tool in ("web_search_20250305", "code_execution_20250825", "tool_search_tool_bm25_20251119"):
            assert "elsewhere" not in await prompt_of_messages(api, tools=[{"type": server_tool, "name": "elsewhere"}])

    run(test)


def test_a_chat_is_rendered_as_it_would_be_asked() -> None:
    async def test(api: Api) -> None:
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        text = (await api.post("/apply-template", **chat)).json()["prompt"]
        assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        ids = (await api.post("/tokenize", **chat)).json()["tokens"]
        assert (await api.post("/detokenize", tokens=ids)).json()["prompt"] == text
        tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
        assert '"weather"' in (await api.post("/apply-template", **chat, tools=tools)).json()["prompt"]
        assert error_of(await api.post("/apply-template", messages=[]), 400)["param"] == "messages"
        bare = (await api.post("/apply-template", **chat, add_generation_prompt=False)).json()["prompt"]
        assert bare == "<|im_start|>user\nhi<|im_end|>\n"

    run(test)
