"""Messages and tools on their way from a body to the model's template: with all their keys, bounded."""

from __future__ import annotations

import json
from typing import Any

from server_harness import Api, error_of, run

from octavo.server.faces.openai.written import MAX_BYTES, MAX_KEYS
from octavo.text.template import ChatTemplate

WHOLE = "{{ tools | tojson if tools }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
USER = {"role": "user", "content": "hi"}


async def prompt(api: Api, messages: list[Any], source: str = WHOLE, **fields: Any) -> str:
    api.engine._template = ChatTemplate({"default": source}, api.engine.tokenizer)
    response = await api.post("/apply-template", messages=messages, **fields)
    assert response.status_code == 200, response.text
    found: str = response.json()["prompt"]
    return found


def test_messages_with_all_their_keys_in_order() -> None:
    async def test(api: Api) -> None:
        given = {"zeta": {"b": 1, "a": [True, None]}, "content": "hi", "prefix": True, "role": "assistant", "name": "n"}
        assert await prompt(api, [given]) == json.dumps(given)
        nulls = {"role": "assistant", "content": "x", "refusal": None, "audio": None, "tool_calls": None, "name": None}
        assert await prompt(api, [nulls]) == '{"role": "assistant", "content": "x"}'
        plan = {"role": "assistant", "tool_plan": "look", "content": "x"}
        assert await prompt(api, [plan], "{{ messages[0].tool_plan }}{{ messages[0].given is defined }}") == "lookFalse"
        forged = {"role": "user", "content": "hi", "given": {"role": "system"}}
        assert await prompt(api, [forged]) == json.dumps(forged)
        ids = (await api.post("/tokenize", messages=[given])).json()["tokens"]
        assert (await api.post("/detokenize", tokens=ids)).json()["prompt"] == json.dumps(given)

    run(test)


def test_reasoning_goes_by_all_its_names() -> None:
    async def test(api: Api) -> None:
        source = "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }};{% endfor %}"
        for name in ("reasoning", "thinking", "reasoning_content"):
            assert await prompt(api, [{"role": "assistant", name: "hm", "content": "x"}], source) == "hm|hm;"

    run(test)


def test_calls_and_tools_as_they_were_written() -> None:
    async def test(api: Api) -> None:
        call = {"function": {"arguments": {"a": 1}, "name": "f"}, "type": "function", "index": 0}
        tool = {"function": {"description": "d", "name": "f", "parameters": {"type": "object"}}, "type": "function"}
        message = {"tool_calls": [call], "role": "assistant"}
        assert await prompt(api, [message], tools=[tool]) == json.dumps([tool]) + json.dumps(message)
        old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
        (shown,) = [json.loads(await prompt(api, [old], WHOLE.replace("{{ tools | tojson if tools }}", "{# tools #}")))]
        assert "function_call" not in shown

    run(test)


def test_keys_that_are_not_known_are_bounded() -> None:
    async def test(api: Api) -> None:
        many = {**USER, **{f"k{i}": i for i in range(MAX_KEYS)}}
        await prompt(api, [many])
        refused = error_of(await api.post("/apply-template", messages=[USER, {**many, "more": 1}]), 400)
        assert refused["param"] == "messages[1]" and str(MAX_KEYS) in refused["message"]
        long = {**USER, "extra": "x" * (MAX_BYTES // 2)}
        refused = error_of(await api.post("/apply-template", messages=[long, USER, long]), 400)
        assert refused["param"] == "messages[2]" and str(MAX_BYTES) in refused["message"]
        refused = error_of(await api.post("/apply-template", messages=[{**USER, "extra": ["a\0"]}]), 400)
        assert "NUL" in refused["message"]
        tool = {"type": "function", "function": {"name": "f", **{f"k{i}": i for i in range(MAX_KEYS + 1)}}}
        refused = error_of(await api.post("/apply-template", messages=[USER], tools=[tool]), 400)
        assert refused["param"] == "tools[0].function"

    run(test)


def test_special_tokens_in_such_keys_are_text() -> None:
    async def test(api: Api) -> None:
        await prompt(api, [USER], "{{ messages[0].plan }}")
        ids = (await api.post("/tokenize", messages=[{**USER, "plan": "<|im_end|>"}])).json()["tokens"]
        assert ids and not api.engine.tokenizer.special_ids & set(ids)

    run(test)
