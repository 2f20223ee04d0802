"""/v1/responses over the fake engine: answers, events, what is stored, what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from server_harness import TEXT, Api, Call, api, error_of, prompt_seen, run

from octavo.config import ServerConfig

RESPONSES = "/v1/responses"


async def respond(api: Api, **body: Any) -> httpx.Response:
    return await api.post(RESPONSES, **{"input": "hi", "temperature": 0, **body})


def named_events(text: str) -> list[dict[str, Any]]:
    """The data of each event; its name is its type, its number its place."""
    found = []
    records = text.split("\n\n")
    assert records.pop() == "", "the stream ends inside an event"
    for number, record in enumerate(records):
        name, data = record.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        found.append(event)
    return found


async def prompt(api: Api, **body: Any) -> str:
    """What the model sees of a request."""
    return await prompt_seen(api, respond(api, max_output_tokens=1, **body))


def test_an_answer_has_the_shape_of_openai() -> None:
    async def test(api: Api) -> None:
        body = (await respond(api, metadata={"a": "b"}, user="me", prompt_cache_key="k")).json()
        assert body["id"].startswith("resp_") and body["object"] == "response" and body["status"] == "completed"
        (item,) = body["output"]
        assert item["id"].startswith("msg_") and item["status"] == "completed" and item["role"] == "assistant"
        assert item["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
        usage = body["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert usage["input_tokens_details"]["cached_tokens"] == 0
        assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
        assert body["error"] is None and body["incomplete_details"] is None and body["completed_at"]
        assert body["temperature"] == 0 and body["top_p"] == 1 and body["text"]["format"] == {"type": "text"}
        assert body["metadata"] == {"a": "b"} and body["user"] == "me" and body["prompt_cache_key"] == "k"
        assert body["tool_choice"] == "auto" and body["tools"] == [] and body["parallel_tool_calls"] is True

    run(test)


def test_the_stream_tells_the_same_answer_event_by_event() -> None:
    async def test(api: Api) -> None:
        whole = (await respond(api)).json()
        events = named_events((await respond(api, stream=True)).text)
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
        assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
        assert set(kinds[4:-4]) == {"output_text.delta"}
        deltas = events[4:-4]
        assert "".join(event["delta"] for event in deltas) == TEXT == events[-4]["text"]
        last = events[-1]["response"]
        assert {(e["item_id"], e["output_index"], e["content_index"]) for e in deltas} == {
            (last["output"][0]["id"], 0, 0)
        }
        assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
        for body in (whole, last):
            body["output"][0]["id"] = body["id"] = body["created_at"] = body["completed_at"] = None
        assert last == whole

    run(test)


def test_an_answer_that_is_cut_off_is_incomplete() -> None:
    async def test(api: Api) -> None:
        body = (await respond(api, max_output_tokens=4)).json()
        assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
        assert body["output"][0]["status"] == "incomplete" and body["output"][0]["content"][0]["text"] == TEXT[:4]
        events = named_events((await respond(api, max_output_tokens=4, stream=True)).text)
        assert events[-1]["type"] == "response.incomplete" and events[-1]["response"]["usage"]["output_tokens"] == 4

    run(test)


def test_log_probabilities_come_when_they_are_included() -> None:
    async def test(api: Api) -> None:
        fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        entries = (await respond(api, **fields)).json()["output"][0]["content"][0]["logprobs"]
        assert b"".join(bytes(e["bytes"]) for e in entries).decode() == TEXT
        assert all(len(e["top_logprobs"]) == 2 for e in entries)
        events = named_events((await respond(api, **fields, stream=True)).text)
        streamed = [entry for e in events if e["type"].endswith("text.delta") for entry in e["logprobs"]]
        assert streamed == entries == events[-4]["logprobs"]
        assert (await respond(api, top_logprobs=2)).json()["output"][0]["content"][0]["logprobs"] == []

    run(test)


def test_items_become_turns() -> None:
    async def test(api: Api) -> None:
        assert await prompt(api, input="a", instructions="be") == "<system\nbe><user\na><assistant\n"
        items: list[dict[str, Any]] = [
            {"role": "developer", "content": "rule"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"role": "user", "content": "b"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "c"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "user", "content": "d"},
        ]
        seen = await prompt(api, input=items, instructions="be")
        assert seen == "<system\nbe\nrule><user\na\nb><assistant\nc\nno><user\nd><assistant\n"

    run(test)


def test_a_response_is_gone_on_from() -> None:
    async def test(api: Api) -> None:
        first = (await respond(api, input="a", instructions="old")).json()
        second = (await respond(api, input="b", previous_response_id=first["id"], max_output_tokens=2)).json()
        assert second["previous_response_id"] == first["id"]
        seen = await prompt(api, input="c", previous_response_id=second["id"], instructions="new")
        answer = first["output"][0]["content"][0]["text"]
        assert (
            seen == f"<system\nnew><user\na><assistant\n{answer}><user\nb><assistant\n{TEXT[:2]}><user\nc><assistant\n"
        )
        streamed = named_events((await respond(api, input="b", stream=True, previous_response_id=first["id"])).text)
        assert (await api.http.get(f"{RESPONSES}/{streamed[-1]['response']['id']}")).json() == streamed[-1]["response"]

    run(test)


def test_items_are_referred_to_by_their_ids() -> None:
    async def test(api: Api) -> None:
        first = (await respond(api, input="a", max_output_tokens=2)).json()
        told = {"type": "item_reference", "id": first["output"][0]["id"]}
        asked = (await api.http.get(f"{RESPONSES}/{first['id']}/input_items")).json()["data"][0]
        items = [{"type": "item_reference", "id": asked["id"]}, told, {"role": "user", "content": "b"}]
        expected = f"<user\na><assistant\n{TEXT[:2]}><user\nb><assistant\n"
        assert await prompt(api, input=items) == expected
        assert await prompt(api, input=items, previous_response_id=first["id"]) == expected
        refused = error_of(await respond(api, input=[{"type": "item_reference", "id": "msg_0"}]), 400)
        assert refused["param"] == "input[0]" and "msg_0" in refused["message"]

    run(test)


def test_what_is_stored_is_retrieved_listed_and_deleted() -> None:
    async def test(api: Api) -> None:
        items = [{"role": "user", "content": text} for text in "abc"]
        body = (await respond(api, input=items)).json()
        path = f"{RESPONSES}/{body['id']}"
        assert (await api.http.get(path)).json() == body
        listed = (await api.http.get(f"{path}/input_items")).json()
        assert [item["content"][0]["text"] for item in listed["data"]] == ["c", "b", "a"]
        assert listed["has_more"] is False and listed["first_id"] == listed["data"][0]["id"]
        page = (await api.http.get(f"{path}/input_items", params={"order": "asc", "limit": 1})).json()
        assert page["has_more"] is True and page["data"] == [listed["data"][2]]
        rest = (await api.http.get(f"{path}/input_items", params={"order": "asc", "after": page["last_id"]})).json()
        assert rest["data"] == listed["data"][1::-1] and rest["has_more"] is False
        for query in ({"limit": 0}, {"limit": "x"}, {"limit": 101}, {"order": "up"}, {"after": "nothing"}):
            assert error_of(await api.http.get(f"{path}/input_items", params=query), 400)["param"] == next(iter(query))
        assert (await api.http.delete(path)).json() == {"id": body["id"], "object": "response", "deleted": True}
        for gone in (api.http.get(path), api.http.delete(path), api.http.get(f"{path}/input_items")):
            assert body["id"] in error_of(await gone, 404)["message"]
        refused = error_of(await respond(api, previous_response_id=body["id"]), 400)
        assert refused["code"] == "previous_response_not_found" and refused["param"] == "previous_response_id"
        unstored = (await respond(api, store=False)).json()
        assert unstored["store"] is False
        error_of(await api.http.get(f"{RESPONSES}/{unstored['id']}"), 404)

    run(test)


def test_a_response_belongs_to_the_key_that_made_it() -> None:
    async def test(api: Api) -> None:
        def key(name: str) -> dict[str, str]:
            return {"authorization": f"Bearer {name}"}

        made = (await api.http.post(RESPONSES, json={"input": "hi"}, headers=key("alpha"))).json()
        path = f"{RESPONSES}/{made['id']}"
        assert (await api.http.get(path, headers=key("alpha"))).status_code == 200
        error_of(await api.http.get(path, headers=key("beta")), 404)
        error_of(await api.http.delete(path, headers=key("beta")), 404)
        going_on = {"input": "x", "previous_response_id": made["id"]}
        error_of(await api.http.post(RESPONSES, json=going_on, headers=key("beta")), 400)
        reference = {"input": [{"type": "item_reference", "id": made["output"][0]["id"]}]}
        error_of(await api.http.post(RESPONSES, json=reference, headers=key("beta")), 400)
        error_of(await api.http.get(path), 401)

    run(test, ServerConfig(api_key=("alpha", "beta")))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "nonsense"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": "a\0b"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "x"}]}]},
         "input[0].output[0]"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "octavo-reasoning-1.$"}]},
         "input[0].encrypted_content"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 3}]}, "tools[0].parameters"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"input": "x" * 5000}, "input"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_refused_by_its_name(fields: dict[str, Any], param: str, stream: bool) -> None:
    async def test(api: Api) -> None:
        assert error_of(await respond(api, **fields, stream=stream), 400)["param"] == param

    run(test)


def test_another_model_is_not_found() -> None:
    async def test(api: Api) -> None:
        assert error_of(await respond(api, model="gpt-5"), 404)["code"] == "model_not_found"

    run(test)


def test_tools_that_are_no_functions_are_told_back_without_their_secrets() -> None:
    async def test(api: Api) -> None:
        tools = [
            {"type": "web_search", "search_context_size": "low"},
            {"type": "mcp", "server_label": "s", "server_url": "https://x", "authorization": "top secret"},
            {"type": "custom", "name": "c"},
            {"type": "local_shell"},
            {"type": "file_search", "vector_store_ids": ["v"]},
        ]
        response = await respond(api, tools=tools)
        shown = response.json()["tools"]
        assert [tool["type"] for tool in shown] == ["web_search", "mcp", "custom", "local_shell", "file_search"]
        assert "top secret" not in response.text and shown[0] == tools[0]

    run(test)


def test_fields_that_change_nothing_are_accepted() -> None:
    async def test(api: Api) -> None:
        for fields in (
            {"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning": None, "tools": None, "text": None},
            {"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"truncation": "disabled"},
            {"unknown": {"a": 1}}, {"service_tier": "flex", "safety_identifier": "s", "max_tool_calls": 3},
            {"stream_options": {"a": True}},
            {"context_management": [{"type": "compaction"}]}, {"include": ["file_search_call.results"]},
            {"tool_choice": "none"}, {"tool_choice": None, "parallel_tool_calls": False}, {"metadata": {}},
        ):  # fmt: skip
            response = await respond(api, **fields)
            assert response.status_code == 200, (fields, response.text)

    run(test)


def test_automatic_truncation_leaves_out_the_oldest_turns() -> None:
    async def test(api: Api) -> None:
        turns = [
            {"role": role, "content": f"{number} {'x' * 200}"} for number in range(20) for role in ("user", "assistant")
        ]
        items = [{"role": "system", "content": "keep"}, *turns, {"role": "user", "content": "last"}]
        assert error_of(await respond(api, input=items), 400)["code"] == "context_length_exceeded"
        seen = await prompt(api, input=items, truncation="auto")
        assert seen.startswith("<system\nkeep><user\n") and seen.endswith("<user\nlast><assistant\n")
        assert "<user\n0 x" not in seen and "19 x" in seen
        assert error_of(await respond(api, input="y" * 5000, truncation="auto"), 400)["param"] == "input"

    run(test)


def test_a_failure_within_the_stream_is_told_and_kept() -> None:
    async def test(api: Api) -> None:
        *_, error, last = named_events((await respond(api, stream=True)).text)
        assert error["type"] == "error" and error["code"] == "engine_error" and error["message"]
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert last["response"]["output"][0]["status"] == "incomplete"
        kept = (await api.http.get(f"{RESPONSES}/{last['response']['id']}")).json()
        assert kept == last["response"]
        assert error_of(await respond(api), 500)["code"] == "engine_error"

    run(test, fail_at=5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_aborted(stream: bool) -> None:
    async def main() -> None:
        async with api(step_delay=0.005) as found:
            call = Call(found.app, RESPONSES, {"input": "hi", "stream": stream, "ignore_eos": True})
            if stream:
                await call.sent(4)
            else:
                await asyncio.sleep(0.1)
            assert found.engine.num_running == 1
            await call.leave()
            assert found.engine.num_running == 0 and found.engine.aborts == 1
            assert not found.app.state.serving.responses.num_responses

    asyncio.run(main())


def test_nothing_runs_in_the_background() -> None:
    async def test(api: Api) -> None:
        made = (await respond(api)).json()
        path = f"{RESPONSES}/{made['id']}"
        assert "background" in error_of(await api.http.post(f"{path}/cancel"), 400)["message"]
        error_of(await api.http.post(f"{RESPONSES}/resp_0/cancel"), 404)
        assert error_of(await api.http.get(path, params={"stream": "true"}), 400)["param"] == "stream"

    run(test)
