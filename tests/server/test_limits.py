"""Requests and tokens a minute, requests at once: for each key, or for all when there are no keys."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_harness import HELLO, TEXT, Api, error_of, events, live, run

from octavo.config import ServerConfig
from octavo.server.core.limits import Bucket, Quota, RateLimited, Ticket, duration, quotas
from octavo.types import SamplingParams


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 300)), max_size=30), st.integers(1, 100))
def test_bucket_gives_no_more_than_a_minute_saved_and_what_came_since(
    takes: list[tuple[float, int]], limit: int
) -> None:
    clock = Clock()
    bucket, taken, start = Bucket(limit, clock), 0, clock.now
    for pause, amount in takes:
        clock.now += pause
        wait = bucket.wait(amount)
        if wait:
            clock.now += wait
            assert bucket.wait(amount) == 0
        bucket.take(amount)
        taken += amount
        elapsed = clock.now - start
        assert taken <= limit + elapsed * limit / 60 + max(0, amount - limit) + 1e-3
        assert bucket.level <= limit


def test_bucket_larger_requests_wait_for_the_full_minute_and_pay_their_debt() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.wait(1000) == 0
    bucket.take(1000)
    assert bucket.level == -940 and bucket.wait(1) == pytest.approx(941)
    clock.now += 941
    assert bucket.wait(1) == 0


@pytest.mark.parametrize(
    "seconds,text",
    [
        (0, "0ms"),
        (-1, "0ms"),
        (0.0201, "21ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9996, "60s"),
        (360, "6m0s"),
        (61.2, "1m2s"),
    ],
)
def test_duration_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ticket_sets_aside_and_puts_right() -> None:
    clock = Clock()
    quota = Quota(None, 1000, clock=clock)
    ticket = Ticket(quota, lambda params: params)
    ticket.enter()
    assert quota.tokens is not None
    ticket.admit(100, 1, SamplingParams(max_tokens=200, n=2))
    assert quota.tokens.level == 500
    second = Ticket(quota, lambda params: params)
    second.enter()
    with pytest.raises(RateLimited) as caught:
        second.admit(501, 1, SamplingParams())
    assert caught.value.type == "tokens" and caught.value.retry_after == 1
    second.leave(0)
    ticket.admit(900, 1, SamplingParams())  # another part of a request that has begun is never refused
    assert quota.tokens.level == -400
    ticket.leave(1130)
    assert quota.tokens.level == -130 and quota.inflight == 0


def test_quotas_one_for_each_key() -> None:
    config = ServerConfig(requests_per_minute=3)
    assert len(quotas(config, 0)) == 1 and len(quotas(config, 4)) == 4


LIMITED = ServerConfig(requests_per_minute=3, tokens_per_minute=1000, api_key=("a", "b"))
A, B = {"x-api-key": "a"}, {"x-api-key": "b"}


def asked(api: Api, headers: dict[str, str], **body: Any) -> Any:
    body = {"messages": HELLO, "temperature": 0, **body}
    return api.http.post("/v1/chat/completions", json=body, headers=headers)


def remaining(response: httpx.Response, kind: str) -> int:
    assert response.headers[f"x-ratelimit-limit-{kind}"] and response.headers[f"x-ratelimit-reset-{kind}"]
    return int(response.headers[f"x-ratelimit-remaining-{kind}"])


def test_requests_per_minute_of_each_key() -> None:
    async def test(api: Api) -> None:
        for left in (2, 1, 0):
            response = await asked(api, A, max_tokens=1)
            assert response.status_code == 200 and remaining(response, "requests") == left
        response = await asked(api, A)
        error = error_of(response, 429)
        assert error["code"] == "rate_limit_exceeded" and error["type"] == "requests" and error["param"] is None
        assert "limit 3, used 3, requested 1" in error["message"]
        assert 1 <= int(response.headers["retry-after"]) <= 20 and remaining(response, "requests") == 0
        assert (await asked(api, B, max_tokens=1)).status_code == 200
        assert (await api.http.get("/v1/models", headers=A)).status_code == 200  # asks for no work

    run(test, LIMITED)


def test_tokens_per_minute_are_those_really_used_in_the_end() -> None:
    async def test(api: Api) -> None:
        response = await asked(api, A, max_tokens=700)
        usage = response.json()["usage"]
        response = await asked(api, A, max_tokens=1)
        assert remaining(response, "tokens") == pytest.approx(
            1000 - usage["total_tokens"] - usage["prompt_tokens"] - 1, abs=20
        )

    run(test, LIMITED)


def test_tokens_set_aside_come_back_when_the_client_of_a_stream_leaves() -> None:
    with (
        live(ServerConfig(tokens_per_minute=1000), step_delay=0.01) as server,
        httpx.Client(base_url=server.url) as http,
    ):

        def left() -> int:
            return remaining(http.post("/tokenize", json={"prompt": "a"}), "tokens")

        body = {"prompt": "abc", "max_tokens": 800, "ignore_eos": True}
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200 and remaining(response, "tokens") < 300
            lines = response.iter_lines()  # dropping it would close the stream
            assert next(lines).startswith("data: ")
            error = error_of(http.post("/v1/completions", json=body), 429)
            assert error["type"] == "tokens" and "on tokens per min" in error["message"]
        for _ in range(500):
            if left() > 500:
                break
            time.sleep(0.01)
        assert 900 < left() <= 1000


def test_stream_refused_by_the_limit_is_a_plain_429() -> None:
    async def test(api: Api) -> None:
        for _ in range(3):
            assert events((await asked(api, A, stream=True)).text)[-1] == "[DONE]"
        error_of(await asked(api, A, stream=True), 429)

    run(test, LIMITED)


def test_inflight_cap_of_each_key() -> None:
    config = ServerConfig(max_inflight=2, api_key=("a", "b"))

    async def test(api: Api) -> None:
        running = [asyncio.create_task(asked(api, A, max_tokens=60, ignore_eos=True)) for _ in range(2)]
        while api.engine.num_running < 2:
            await asyncio.sleep(0.005)
        response = await asked(api, A)
        assert "2 requests are in flight" in error_of(response, 429)["message"] and response.headers["retry-after"]
        assert "x-ratelimit-limit-requests" not in response.headers
        assert (await asked(api, B, max_tokens=1)).status_code == 200
        assert {(await task).status_code for task in running} == {200}
        assert (await asked(api, A)).status_code == 200

    run(test, config, step_delay=0.005)


def test_refused_and_wrong_requests_leave_nothing_in_flight() -> None:
    async def test(api: Api) -> None:
        for _ in range(5):
            assert (await api.raw(b"{")).status_code == 400
            assert (await api.post("/nowhere")).status_code == 404
            assert (await api.raw(b"x", **{"content-type": "text/plain"})).status_code == 415
        assert (await api.chat()).status_code == 200

    run(test, ServerConfig(max_inflight=1))


def test_without_keys_the_limit_is_everybodys() -> None:
    async def test(api: Api) -> None:
        assert (await asked(api, A)).status_code == 200
        error_of(await asked(api, B), 429)

    run(test, ServerConfig(requests_per_minute=1))


def test_without_limits_no_headers() -> None:
    async def test(api: Api) -> None:
        response = await api.chat()
        assert response.json()["choices"][0]["message"]["content"] == TEXT
        assert not any(name.startswith("x-ratelimit") for name in response.headers)

    run(test)
