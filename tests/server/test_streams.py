"""How streams and their clients end: failures, disconnects, slow readers, engine restarts, shutdown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from patience import PATIENCE_S
from server_harness import HELLO, TEXT, Api, Call, api, error_of, events, run

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 1500, "ignore_eos": True}


def test_failure_within_a_stream_is_an_error_event_and_no_done() -> None:
    async def test(api: Api) -> None:
        for path, fields in ((CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": ["a", "b"]})):
            response = await api.post(path, **fields, stream=True, temperature=0)
            assert response.status_code == 200
            *chunks, last = events(response.text)
            assert len(chunks) >= 1 and set(last) == {"error"}
            assert set(last["error"]) == {"message", "type", "param", "code"}
            assert last["error"]["code"] == "engine_error"
            assert not any(c["finish_reason"] for chunk in chunks for c in chunk["choices"])
            assert error_of(await api.post(path, **fields, temperature=0), 500)["code"] == "engine_error"

    run(test, fail_at=5)


def test_failure_before_the_first_token_is_a_plain_status() -> None:
    async def test(api: Api) -> None:
        assert error_of(await api.chat(stream=True), 500)["code"] == "engine_error"

    run(test, fail_at=0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_client_that_leaves_in_decode_is_aborted_at_once(stream: bool, n: int) -> None:
    async def main() -> None:
        async with api(step_delay=0.005) as found:
            call = Call(found.app, CHAT, {**LONG, "stream": stream, "n": n})
            if stream:
                await call.sent(4)
            else:
                await asyncio.sleep(0.1)
            assert found.engine.num_running == n
            await call.leave()
            assert found.engine.num_running == 0 and found.engine.aborts == n
            assert "[DONE]" not in call.text
            assert "octavo:request_aborts_total" in (await found.http.get("/metrics")).text

    asyncio.run(main())


def test_client_that_leaves_while_queued_is_aborted_and_others_go_on() -> None:
    async def main() -> None:
        async with api(step_delay=0.005, max_num_seqs=1) as found:
            first = asyncio.create_task(found.chat())
            while found.engine.num_running < 1:
                await asyncio.sleep(0)
            call = Call(found.app, CHAT, {**LONG, "stream": True})
            while found.engine.num_running < 2:
                assert not first.done()
                await asyncio.sleep(0)
            await call.leave()
            assert found.engine.num_running == 1
            assert (await first).json()["choices"][0]["message"]["content"] == TEXT

    asyncio.run(main())


def test_client_of_several_prompts_that_leaves_aborts_all() -> None:
    async def main() -> None:
        async with api(step_delay=0.005) as found:
            body = {"prompt": ["a", "b", "c"], "max_tokens": 1000, "ignore_eos": True, "stream": True, "n": 2}
            call = Call(found.app, "/v1/completions", body)
            await call.sent(10)
            assert found.engine.num_running == 6
            await call.leave()
            assert found.engine.num_running == 0

    asyncio.run(main())


def test_reader_that_stops_reading_is_dropped() -> None:
    async def main() -> None:
        async with api(step_delay=0.001) as found:
            found.inflight.send_timeout = 0.2
            call = Call(found.app, CHAT, {**LONG, "stream": True}, block_after=5)
            await asyncio.wait_for(call.task, PATIENCE_S)
            assert found.engine.num_running == 0 and len(call.messages) == 6

    asyncio.run(main())


def test_no_headers_wait_for_a_slow_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.http.stream.FIRST_EVENT_S", 0.05)

    async def main() -> None:
        async with api(step_delay=0.3) as found:
            call = Call(found.app, CHAT, {**LONG, "stream": True})
            await asyncio.wait_for(call.sent(1), 0.25)
            assert call.messages[0]["status"] == 200
            await call.sent(2)
            await call.leave()
            waiting = Call(found.app, CHAT, {**LONG, "stream": True})
            await waiting.sent(1)
            await waiting.leave()
            assert found.engine.num_running == 0

    asyncio.run(main())


def test_no_stream_is_silent_while_a_long_prompt_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.http.stream.FIRST_EVENT_S", 0.01)
    monkeypatch.setattr("octavo.server.http.stream.SILENCE_S", 0.03)
    chat: dict[str, Any] = {"messages": HELLO, "max_tokens": 1, "stream": True}
    message = {"model": "fake-model", **chat}

    async def main() -> None:
        async with api(step_delay=0.2) as found:
            for path, body, sign in (
                (CHAT, chat, ": keep-alive\n\n"),
                ("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream": True}, ": keep-alive\n\n"),
                ("/v1/responses", {"input": "a", "max_output_tokens": 1, "stream": True}, ": keep-alive\n\n"),
                ("/v1/messages", message, 'event: ping\ndata: {"type":"ping"}\n\n'),
            ):
                call = Call(found.app, path, body)
                await call.sent(4)
                assert found.engine.num_running == 1, path
                await asyncio.wait_for(call.task, PATIENCE_S)
                assert call.text.count(sign) > 1 and not call.text.split(sign)[-1].startswith(":"), path
                rest = call.text.replace(sign, "")
                first, last = rest.split("\n\n")[0], rest.split("\n\n")[-2]
                assert "role" in first or "created" in first or "message_start" in first or '"text"' in first, path
                assert "[DONE]" in last or "response.incomplete" in last or "message_stop" in last, path

    asyncio.run(main())


def test_stream_survives_an_engine_restart() -> None:
    async def main() -> None:
        async with api(step_delay=0.005) as found:
            call = Call(found.app, CHAT, {"messages": HELLO, "temperature": 0, "stream": True})
            await call.sent(8)
            found.engine.crash()
            assert (await found.http.get("/ready")).status_code == 503
            assert error_of(await found.chat(stream=True), 503)["code"] == "unavailable"
            found.engine.restart()
            await asyncio.wait_for(call.task, PATIENCE_S)
            chunks = events(call.text)
            assert chunks.pop() == "[DONE]"
            assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT
            assert (
                'octavo:engine_restarts_total{model_name="fake-model"} 1.0' in (await found.http.get("/metrics")).text
            )

    asyncio.run(main())


def test_drain_refuses_new_work_and_finishes_what_runs() -> None:
    async def main() -> None:
        async with api(step_delay=0.005) as found:
            running = asyncio.create_task(found.chat(stream=True))
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(found.inflight.drain(5))
            await asyncio.sleep(0.01)
            for response in (await found.chat(), await found.chat(stream=True), await found.complete()):
                assert error_of(response, 503)["code"] == "draining" and int(response.headers["retry-after"]) > 0
            ready = await found.http.get("/ready")
            assert ready.status_code == 503 and ready.json()["status"] == "draining"
            assert (await found.http.get("/health")).status_code == 200
            assert await draining == 0
            assert events((await running).text)[-1] == "[DONE]"

    asyncio.run(main())


def test_drain_ends_the_rest_with_an_error() -> None:
    async def main() -> None:
        async with api(step_delay=0.01) as found:
            streamed = Call(found.app, CHAT, {**LONG, "stream": True})
            plain = Call(found.app, CHAT, LONG)
            await streamed.sent(3)
            assert await found.inflight.drain(0.05) == 2
            await asyncio.wait_for(asyncio.gather(streamed.task, plain.task), PATIENCE_S)
            assert events(streamed.text)[-1]["error"]["code"] == "draining"
            assert plain.messages[0]["status"] == 503
            assert found.engine.num_running == 0

    asyncio.run(main())


def test_many_streams_at_once_are_each_complete() -> None:
    async def main() -> None:
        async with api() as found:
            answers = await asyncio.gather(*(found.chat(stream=True) for _ in range(32)))
            for answer in answers:
                chunks = events(answer.text)
                assert chunks.pop() == "[DONE]"
                assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT

    asyncio.run(main())


def test_a_disconnect_while_rendering_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with api() as found:
            import time

            encode = found.engine.template.encode

            def slow(*args: Any, **kwargs: Any) -> list[int]:
                time.sleep(0.2)
                return encode(*args, **kwargs)

            monkeypatch.setattr(found.engine.template, "encode", slow)
            call = Call(found.app, CHAT, {**LONG, "stream": True})
            await asyncio.sleep(0.05)
            await call.leave()
            assert not len(found.inflight) and not call.messages

    asyncio.run(main())
