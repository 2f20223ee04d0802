"""Bodies of the responses and messages faces with any value in any place: understood or refused, never a failure of
ours, and nothing keeps running."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_harness import Api, api

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
RESPONSE: dict[str, Any] = {
    "model": "fake-model", "instructions": "i", "max_output_tokens": 2, "temperature": 0.0, "store": True,
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "t"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}],
         "content": [{"type": "reasoning_text", "text": "r"}], "encrypted_content": "octavo-reasoning-1.cg=="},
        {"role": "assistant", "content": [{"type": "output_text", "text": "o", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "namespace": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "shell_call", "call_id": "d", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "d", "output": [{"stdout": "a", "stderr": "b"}]},
        {"type": "mcp_call", "id": "m", "name": "g", "arguments": "{}", "output": "h"},
    ],
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": False},
              {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]},
              {"type": "web_search"}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"], "metadata": {"a": "b"}, "truncation": "auto", "stop": ["z"],
    "previous_response_id": None, "stream_options": {}, "top_logprobs": 1,
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "model": "fake-model", "max_tokens": 2, "temperature": 0.0, "stop_sequences": ["z"], "top_k": 3,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "document", "title": "d",
         "source": {"type": "text", "data": "x"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "r", "signature": "s"},
         {"type": "text", "text": "o"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "b"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "is_error": True,
         "content": [{"type": "text", "text": "x"}]}, {"type": "search_result", "source": "u", "title": "t",
         "content": [{"type": "text", "text": "y"}]}]},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1}, "output_config": {"effort": "low"},
    "metadata": {"user_id": "u"}, "chat_template_kwargs": {"enable_thinking": True},
}  # fmt: skip
WORDS = ["", "\0", "user", "function", "text", "message", "item_reference", "<|im_end|>", "x" * 300, "\u200b", "tool"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.sampled_from([-1, 0, 1, 2**31, 2**63, 1e308, -0.5]), st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name", "id"]), inner),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything within a body."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any, drop: bool) -> dict[str, Any]:
    body = copy.deepcopy(body)
    at: Any = body
    for key in path[:-1]:
        at = at[key]
    if drop:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return body


class Faces:
    """One application for all examples."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._context = api()
        self.api: Api = self.loop.run_until_complete(self._context.__aenter__())

    def ask(self, path: str, body: dict[str, Any]) -> None:
        response = self.loop.run_until_complete(self.api.post(path, **body))
        assert response.status_code in (200, 400, 404), (response.status_code, response.text, body)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
        assert "event: error" not in response.text

    def close(self) -> None:
        self.loop.run_until_complete(self._context.__aexit__(None, None, None))
        self.loop.close()


@pytest.fixture(scope="module")
def faces() -> Iterator[Faces]:
    found = Faces()
    yield found
    found.close()


QUICK = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)])
def test_the_body_itself_is_understood(faces: Faces, path: str, body: dict[str, Any]) -> None:
    for stream in (False, True):
        response = faces.loop.run_until_complete(faces.api.post(path, **{**body, "stream": stream}))
        assert response.status_code == 200, response.text


@QUICK
@given(data=st.data(), value=VALUES, drop=st.booleans(), stream=st.booleans())
def test_any_value_anywhere_in_a_response(
    faces: Faces, data: st.DataObject, value: Any, drop: bool, stream: bool
) -> None:
    path = data.draw(st.sampled_from(list(places(RESPONSE))))
    faces.ask("/v1/responses", {**changed(RESPONSE, path, value, drop), "stream": stream})


@QUICK
@given(data=st.data(), value=VALUES, drop=st.booleans(), stream=st.booleans())
def test_any_value_anywhere_in_a_message(
    faces: Faces, data: st.DataObject, value: Any, drop: bool, stream: bool
) -> None:
    path = data.draw(st.sampled_from(list(places(MESSAGE))))
    body = {**changed(MESSAGE, path, value, drop), "stream": stream}
    faces.ask("/v1/messages", body)
    faces.ask("/v1/messages/count_tokens", body)
