"""/v1/messages over the fake engine: Anthropic's answers, events and errors, and what the model sees."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from server_harness import TEXT, Api, Call, api, prompt_seen, run

from octavo.config import ServerConfig

MESSAGES = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]


async def ask(api: Api, **body: Any) -> httpx.Response:
    return await api.post(
        MESSAGES, **{"model": "fake-model", "max_tokens": 100, "temperature": 0, "messages": HI, **body}
    )


def named_events(text: str) -> list[dict[str, Any]]:
    found = []
    records = text.split("\n\n")
    assert records.pop() == "", "the stream ends inside an event"
    for record in records:
        name, data = record.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events of a stream make up, its order checked."""
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    message: dict[str, Any] = dict(events[0]["message"])
    assert message["content"] == [] and message["stop_reason"] is None
    pending: dict[int, str] = {}
    for event in events[1:-1]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"]) and not pending
            pending[event["index"]] = ""
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            assert event["index"] in pending
            for key in ("text", "thinking", "signature"):
                block.update({key: block[key] + delta[key]} if key in delta else {})
            pending[event["index"]] += delta.get("partial_json", "")
        elif event["type"] == "content_block_stop":
            arguments = pending.pop(event["index"])
            if arguments:
                message["content"][event["index"]]["input"] = json.loads(arguments)
        elif event["type"] == "message_delta":
            assert not pending
            message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
        else:
            assert event["type"] == "ping"
    return message


def refused(response: httpx.Response, status: int, kind: str = "invalid_request_error") -> str:
    """The message of an error, its form checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert set(body["error"]) == {"type", "message"} and body["error"]["type"] == kind
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert int(response.headers["content-length"]) == len(response.content)
    message: str = body["error"]["message"]
    return message


async def prompt(api: Api, **body: Any) -> str:
    """What the model sees of a request."""
    return await prompt_seen(api, ask(api, **{"max_tokens": 1, **body}))


def test_an_answer_has_the_shape_of_anthropic() -> None:
    async def test(api: Api) -> None:
        response = await ask(api)
        body = response.json()
        assert body["id"].startswith("msg_") and body["type"] == "message" and body["role"] == "assistant"
        assert body["content"] == [{"type": "text", "text": TEXT}]
        assert body["stop_reason"] == "end_turn" and body["stop_sequence"] is None and body["model"] == "fake-model"
        assert body["usage"]["output_tokens"] == len(TEXT.encode()) + 1 and body["usage"]["input_tokens"] > 10
        assert response.headers["request-id"] == response.headers["x-request-id"]

    run(test)


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 4}, {"stop_sequences": ["zzz", "fake"]}])
def test_the_stream_tells_the_same_answer(fields: dict[str, Any]) -> None:
    async def test(api: Api) -> None:
        whole = (await ask(api, **fields)).json()
        response = await ask(api, **fields, stream=True)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["request-id"]
        events = named_events(response.text)
        assert all(None not in event["content_block"].values() for event in events if "content_block" in event)
        kinds = [event["type"] for event in events]
        assert kinds[:3] == ["message_start", "content_block_start", "ping"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        message = joined(events)
        assert message.pop("id") != whole.pop("id")
        assert message == whole

    run(test)


def test_why_an_answer_ended() -> None:
    async def test(api: Api) -> None:
        cut = (await ask(api, max_tokens=4)).json()
        assert cut["stop_reason"] == "max_tokens" and cut["content"][0]["text"] == TEXT[:4]
        stopped = (await ask(api, stop_sequences=["zzz", "fake"])).json()
        assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "fake")
        assert stopped["content"][0]["text"] == TEXT[: TEXT.index("fake")]
        full = (await ask(api, max_tokens=10**6, ignore_eos=True)).json()
        assert full["stop_reason"] == "model_context_window_exceeded"
        empty = (await ask(api, stop_sequences=["H"])).json()
        assert empty["content"] == [{"type": "text", "text": ""}]

    run(test, max_model_len=200)


def test_blocks_become_turns() -> None:
    async def test(api: Api) -> None:
        text = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
        assert await prompt(api, system="be") == "<system\nbe><user\nhi><assistant\n"
        blocks = [{"type": "text", "text": "x-anthropic-billing-header: v=1; cch=abc;"}, {**text, "text": "be"}, text]
        assert await prompt(api, system=blocks) == "<system\nbe a><user\nhi><assistant\n"
        document = {"type": "document", "title": "T", "source": {"type": "text", "data": "d"}}
        found = {"type": "search_result", "title": "S", "source": "u", "content": [{"type": "text", "text": "s"}]}
        messages = [
            {"role": "user", "content": [text]},
            {"role": "user", "content": [document, found]},
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "…"}, {**text, "text": "b"}]},
            {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
             {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}, {**text, "text": "c"}]},
            {"role": "user", "content": "d"},
            {"role": "system", "content": "now"},
        ]  # fmt: skip
        seen = await prompt(api, messages=messages)
        assert seen == "<user\na\nT\nd\nS\nu\ns><assistant\nb\nc><user\nd><system\nnow><assistant\n"

    run(test)


def test_an_assistants_last_turn_is_gone_on_from() -> None:
    async def test(api: Api) -> None:
        prefill = [*HI, {"role": "assistant", "content": "The answer is ("}]
        assert (await prompt(api, messages=prefill)).endswith("<assistant\nThe answer is (")
        empty = [*HI, {"role": "assistant", "content": ""}]
        assert (await prompt(api, messages=empty)).endswith("<assistant\n")

    run(test)


def test_tokens_are_counted_as_the_prompt_has_them() -> None:
    async def test(api: Api) -> None:
        body = {"model": "fake-model", "messages": HI, "system": [{"type": "text", "text": "be"}]}
        counted = (await api.post(f"{MESSAGES}/count_tokens", **body, betas=["x"])).json()
        usage = (await ask(api, **body)).json()["usage"]
        assert counted == {"input_tokens": usage["input_tokens"]}
        assert "max_tokens" not in refused(await api.post(f"{MESSAGES}/count_tokens", messages=[], model="x"), 400)

    run(test)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [*HI, {"role": "user", "content": "a\0b"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
         "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": 1}]}]},
         "messages[0].content[0].content"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": "x"}]}]},
         "messages[0].content[0].input"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"temperature": -1}, "temperature"),
        ({"n": 2}, "n and best_of"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f", "input_schema": 1}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}}] * 2}, "tools[1].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_refused_by_its_name(fields: dict[str, Any], named: str, stream: bool) -> None:
    async def test(api: Api) -> None:
        assert named in refused(await ask(api, **fields, stream=stream), 400)

    run(test)


def test_every_failure_of_the_routes_has_their_form() -> None:
    async def test(api: Api) -> None:
        key = {"x-api-key": "k", "content-type": "application/json"}
        body = {"model": "fake-model", "max_tokens": 4, "messages": HI}
        assert "API key" in refused(await api.http.post(MESSAGES, json=body), 401, "authentication_error")
        assert (await api.http.post(MESSAGES, json=body, headers=key)).status_code == 200
        other = await api.http.post(MESSAGES, json={**body, "model": "claude"}, headers=key)
        assert "'fake-model'" in refused(other, 404, "not_found_error")
        refused(await api.http.get(f"{MESSAGES}/batches", headers=key), 404, "not_found_error")
        assert "POST" in refused(await api.http.get(MESSAGES, headers=key), 405)
        refused(await api.http.post(MESSAGES, content=b"{", headers=key), 400)
        refused(await api.http.post(MESSAGES, content=b"{}", headers={**key, "content-type": "text/plain"}), 415)
        refused(await api.http.post(MESSAGES, content=b" " * 70_000, headers=key), 413, "request_too_large")
        api.engine.crash()
        busy = await api.http.post(MESSAGES, json=body, headers=key)
        assert refused(busy, 503, "overloaded_error") and busy.headers["retry-after"]
        assert set((await api.http.post("/v1/chat/completions", json=body)).json()) == {"error"}

    run(test, ServerConfig(api_key=("k",), max_body_size="64KiB"))


def test_too_many_at_once_is_a_rate_limit() -> None:
    async def test(api: Api) -> None:
        first = asyncio.create_task(ask(api, max_tokens=20))
        await asyncio.sleep(0.05)
        late = await ask(api)
        assert refused(late, 429, "rate_limit_error") and late.headers["retry-after"]
        assert (await first).status_code == 200

    run(test, ServerConfig(max_inflight=1), step_delay=0.02)


def test_a_prompt_that_is_too_long_says_so_in_the_words_that_agents_know() -> None:
    async def test(api: Api) -> None:
        message = refused(await ask(api, messages=[{"role": "user", "content": "x" * 5000}], stream=True), 400)
        assert message == "prompt is too long: 5019 tokens > 2048 maximum"

    run(test)


def test_what_coding_agents_send_beside_is_accepted() -> None:
    async def test(api: Api) -> None:
        fields: dict[str, Any] = {
            "system": [{"type": "text", "text": "s" * 100, "cache_control": {"type": "ephemeral"}}] * 3,
            "betas": ["context-management-2025-06-27"], "context_management": {"edits": [{"type": "x"}]},
            "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 64, "display": "omitted"},
            "service_tier": "auto", "container": None, "mcp_servers": [], "output_config": {"effort": "low"},
            "tool_choice": {"type": "auto"}, "top_k": 5, "top_p": 0.9, "speed": "fast",
            "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        }  # fmt: skip
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
        body = {"model": "fake-model", "max_tokens": 4, "messages": HI, **fields}
        response = await api.http.post(MESSAGES, json=body, headers=headers, params={"beta": "true"})
        assert response.status_code == 200, response.text
        for thinking in ({"type": "disabled"}, {"type": "adaptive"}, None):
            assert (await ask(api, thinking=thinking)).status_code == 200

    run(test)


def test_a_failure_within_the_stream_is_an_error_event() -> None:
    async def test(api: Api) -> None:
        *events, last = named_events((await ask(api, stream=True)).text)
        assert events[0]["type"] == "message_start" and "message_stop" not in {e["type"] for e in events}
        assert last["error"]["type"] == "api_error" and last["error"]["message"] and last["request_id"]
        refused(await ask(api), 500, "api_error")

    run(test, fail_at=5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_aborted(stream: bool) -> None:
    async def main() -> None:
        async with api(step_delay=0.005) as found:
            body = {"model": "fake-model", "max_tokens": 1500, "messages": HI, "stream": stream, "ignore_eos": True}
            call = Call(found.app, MESSAGES, body)
            if stream:
                await call.sent(4)
            else:
                await asyncio.sleep(0.1)
            assert found.engine.num_running == 1
            await call.leave()
            assert found.engine.num_running == 0 and found.engine.aborts == 1

    asyncio.run(main())


def test_models_are_told_in_the_form_of_who_asks() -> None:
    async def test(api: Api) -> None:
        headers = {"anthropic-version": "2023-06-01"}
        told = (await api.http.get("/v1/models", headers=headers)).json()
        assert told["has_more"] is False and told["first_id"] == told["last_id"] == "fake-model"
        (model,) = told["data"]
        assert model["type"] == "model" and model["max_input_tokens"] == 2048 and model["created_at"].endswith("Z")
        assert (await api.http.get("/v1/models/fake-model", headers=headers)).json() == model
        refused(await api.http.get("/v1/models/claude", headers=headers), 404, "not_found_error")
        assert (await api.http.get("/v1/models")).json()["object"] == "list"

    run(test)
