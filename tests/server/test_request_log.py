"""`--log-requests`: ids, sizes and times of what comes in and goes out; texts at debug only."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from server_harness import HELLO, Api, run

from octavo.config import ServerConfig
from octavo.server.http.request_log import MAX_TEXT

CONFIG = ServerConfig(log_requests=True, access_log=False, api_key=("alice: sk-alice-0123456789",))
KEY = {"x-api-key": "sk-alice-0123456789"}
QUESTION = [{"role": "user", "content": "a-secret-question"}]


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    found = [r for r in caplog.records if r.name == "octavo.requests"]
    return [(r.getMessage(), {**r.fields, "id": r.request_id}) for r in found]


def test_a_request_is_told_when_it_begins_and_when_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")
    body = json.dumps({"messages": QUESTION, "max_tokens": 4, "n": 2, "seed": 7}).encode()
    sizes: list[int] = []

    async def test(api: Api) -> None:
        headers = {**KEY, "x-request-id": "mine", "content-type": "application/json"}
        answer = await api.http.post("/v1/chat/completions", content=body, headers=headers)
        streamed = await api.http.post(
            "/v1/chat/completions", json={"messages": QUESTION, "stream": True}, headers={"x-request-id": "two", **KEY}
        )
        wrong = await api.http.post("/v1/completions", json={"prompt": 1.5}, headers=KEY)
        nobody = await api.http.post("/v1/completions", json={"prompt": "a"})
        await api.http.get("/v1/models", headers=KEY)
        sizes.extend(len(response.content) for response in (answer, streamed, wrong, nobody))

    run(test, CONFIG, reply="a-secret-answer which is longer than four tokens")
    begun, ended = records(caplog)[:2]
    assert begun[0] == "POST /v1/chat/completions begins, from 127.0.0.1" and begun[1]["id"] == ended[1]["id"] == "mine"
    fields = ended[1]
    assert fields["request_bytes"] == len(body) and fields["answer_bytes"] == sizes[0] and fields["status"] == 200
    assert (fields["n"], fields["max_tokens"], fields["seed"], fields["completion_tokens"]) == (2, 4, 7, 8)
    assert fields["key"] == "alice" and {"queue_ms", "prefill_ms", "decode_ms", "time_to_first_token_ms"} <= set(fields)
    assert f"{len(body)} bytes in, {sizes[0]} out, n 2, max_tokens 4" in ended[0]
    others = [fields for text, fields in records(caplog)[2:] if " ended " in text]
    assert [(one["status"], one["answer_bytes"]) for one in others] == [
        (200, sizes[1]), (400, sizes[2]), (401, sizes[3]),
    ]  # fmt: skip
    assert "key" not in others[2] and len(records(caplog)) == 8
    assert "a-secret" not in caplog.text and "sk-alice" not in caplog.text


def test_texts_are_shown_at_debug_only_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")

    async def test(api: Api) -> None:
        await api.http.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True}, headers=KEY)
        long = [{"role": "user", "content": "x" * (MAX_TEXT + 100)}]
        await api.http.post("/v1/chat/completions", json={"messages": long}, headers=KEY)

    run(test, CONFIG, reply="a-secret-answer")
    texts = [text for text, fields in records(caplog) if fields["event"] in ("asked", "answered")]
    assert texts[0].startswith('asked: {"messages"') and "a-secret-question" in texts[0]
    assert texts[1].startswith("answered: data: ") and "[DONE]" in texts[1]
    assert MAX_TEXT < len(texts[2]) < MAX_TEXT + 100 and texts[2].endswith(" bytes")
    assert "sk-alice" not in caplog.text


def test_without_the_option_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")

    async def test(api: Api) -> None:
        assert (await api.chat(messages=HELLO)).status_code == 200

    run(test)
    assert not records(caplog)
