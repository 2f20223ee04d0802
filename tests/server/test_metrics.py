"""/metrics: every ending of a request is counted once, as what it was; the exposition is valid; engines come and go."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from server_harness import HELLO, Api, Call, error_of, events, run

from octavo.client.totals import COUNTERS, Totals
from octavo.config import ServerConfig
from octavo.errors import RequestError
from octavo.server.core.machine import Gpu as GpuState
from octavo.server.core.machine import Machine
from octavo.wire.messages import Stats

Samples = dict[tuple[str, ...], float]
LONG = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}


async def scraped(api: Api) -> Samples:
    """(name, label values but the model's) → value."""
    text = (await api.http.get("/metrics")).text
    return {
        (s.name, *sorted(v for k, v in s.labels.items() if k != "model_name")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


ENDINGS = ("octavo:request_success_total", "octavo:request_failures_total", "octavo:request_aborts_total")


async def endings(api: Api) -> dict[str, float]:
    """What has been counted of the endings: reason, code or "abort" → number."""
    return {"/".join(k[1:]) or "abort": v for k, v in (await scraped(api)).items() if k[0] in ENDINGS and v}


def ends(expected: dict[str, float], act: Callable[[Api], Coroutine[Any, Any, None]], **fake: Any) -> None:
    """After `act` exactly these endings are counted, and nothing is added to them later."""

    async def test(api: Api) -> None:
        await act(api)
        await api.settled()
        assert await endings(api) == expected
        await asyncio.sleep(0.02)
        assert await endings(api) == expected

    run(test, **fake)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_and_length_are_counted_once_per_choice(stream: bool) -> None:
    async def act(api: Api) -> None:
        await api.chat(stream=stream)
        await api.chat(stream=stream, n=3, max_tokens=4)
        await api.complete(stream=stream, prompt=["a", "b"], stop=["am"])
        await api.complete(stream=stream, max_tokens=0, echo=True)
        await api.chat(stream=stream, n=1, max_tokens=4, seed=1)
        await api.complete(stream=False, n=1, best_of=3, max_tokens=4)

    ends({"stop": 3, "length": 6}, act)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_an_ending_of_its_own(stream: bool) -> None:
    async def act(api: Api) -> None:
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
        await api.chat(stream=stream, tools=[tool])
        await api.chat(stream=stream)

    ends({"tool_calls": 1, "stop": 1}, act, reply='<tool_call>{"name": "add", "arguments": {}}</tool_call>')


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure_is_one_failure(stream: bool) -> None:
    async def act(api: Api) -> None:
        await api.chat(stream=stream)
        await api.chat(stream=stream, n=4)

    ends({"engine_error": 2}, act, fail_at=5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_among_several_prompts_leaves_the_finished_ones_counted(stream: bool) -> None:
    async def act(api: Api) -> None:
        body = {"prompt": ["a", "b"], "max_tokens": 3, "stream": stream}
        assert (await api.complete(**body)).status_code == 200
        api.engine.fail_at = 2
        await api.complete(**body)

    ends({"length": 2, "engine_error": 1}, act)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_one_failure_by_its_code(stream: bool) -> None:
    async def act(api: Api) -> None:
        error_of(await api.chat(stream=stream, temperature=-1), 400)
        error_of(await api.chat(stream=stream, max_tokens=1, model="other"), 404)
        error_of(await api.complete(stream=stream, prompt="x" * 200), 400)
        error_of(await api.raw(b"{"), 400)
        error_of(await api.http.get("/nowhere"), 404)
        error_of(await api.http.get("/tokenize"), 405)

    expected = {
        "invalid_value": 1, "model_not_found": 1, "context_length_exceeded": 1, "invalid_json": 1, "not_found": 1,
        "method_not_allowed": 1,
    }  # fmt: skip
    ends(expected, act, max_model_len=64)


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_one_failure(stream: bool) -> None:
    async def act(api: Api) -> None:
        first = asyncio.create_task(api.chat(**LONG, n=2))
        await asyncio.sleep(0.05)
        error_of(await api.chat(stream=stream), 429)
        first.cancel()
        await asyncio.wait([first])

    async def test(api: Api) -> None:
        await act(api)
        assert (await endings(api)).get("queue_full") == 1

    run(test, max_num_seqs=1, max_queued_requests=1, step_delay=0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [0, 3])
def test_a_client_that_leaves_is_one_abort(stream: bool, tokens: int) -> None:
    """Before the first token (`step_delay` keeps it waiting), and amid the output."""

    async def act(api: Api) -> None:
        call = Call(api.app, "/v1/chat/completions", {"messages": HELLO, "stream": stream, **LONG})
        while api.engine.stats.generated_tokens < tokens or not api.engine.num_running:
            await asyncio.sleep(0.005)
        await call.leave()
        status = "200" if stream and tokens else "499"
        assert (await scraped(api))["octavo:http_requests_total", "/v1/chat/completions", status, "POST"] == 1

    ends({"abort": 1}, act, step_delay=0.005 if tokens else 0.5)


def test_a_client_that_leaves_the_queue_is_one_abort() -> None:
    async def act(api: Api) -> None:
        first = Call(api.app, "/v1/chat/completions", {"messages": HELLO, **LONG})
        second = Call(api.app, "/v1/completions", {"prompt": ["a", "b"], "n": 2, **LONG})
        while api.engine.num_running < 5:
            await asyncio.sleep(0.005)
        await second.leave()
        await first.leave()

    ends({"abort": 2}, act, max_num_seqs=1, step_delay=0.01)


def test_a_client_that_leaves_after_the_last_token_has_aborted_nothing() -> None:
    async def act(api: Api) -> None:
        body = {"messages": HELLO, "stream": True, "temperature": 0, "max_tokens": 3}
        call = Call(api.app, "/v1/chat/completions", body, block_after=2)
        while api.engine.num_running or not api.engine.stats.generated_tokens:
            await asyncio.sleep(0.005)
        await call.leave()

    ends({"length": 1}, act)


def test_a_client_that_leaves_amid_its_body_is_one_abort() -> None:
    async def act(api: Api) -> None:
        call = Call(api.app, "/v1/chat/completions", {})
        call._body = None  # nothing of it ever comes
        await call.leave()

    ends({"abort": 1}, act)


def test_a_crash_of_the_engine_that_is_survived_counts_nothing_but_itself() -> None:
    async def test(api: Api) -> None:
        running = asyncio.create_task(api.chat(max_tokens=30, ignore_eos=True))
        while api.engine.stats.generated_tokens < 5:
            await asyncio.sleep(0.005)
        api.engine.crash()
        await asyncio.sleep(0.02)
        api.engine.restart()
        assert (await running).json()["usage"]["completion_tokens"] == 30
        assert await endings(api) == {"length": 1}
        samples = await scraped(api)
        assert samples[("octavo:engine_restarts_total",)] == 1
        assert samples[("octavo:generation_tokens_total",)] == 30

    run(test, step_delay=0.005)


def test_draining_is_a_failure() -> None:
    async def test(api: Api) -> None:
        running = asyncio.create_task(api.chat(**LONG))
        while not api.engine.num_running:
            await asyncio.sleep(0.005)
        assert await api.inflight.drain(0.01) == 1
        error_of(await running, 503)
        error_of(await api.chat(), 503)
        assert await endings(api) == {"draining": 2}

    run(test, step_delay=0.01)


def test_tokens_are_counted_as_usage_tells_them_whatever_the_request_asks_for() -> None:
    async def test(api: Api) -> None:
        prompt = generated = 0
        for body in (
            {"prompt": "abc"}, {"prompt": ["abc", "de"], "n": 2}, {"prompt": "abc", "best_of": 3, "max_tokens": 5},
            {"prompt": "abc", "stop": "fake"}, {"prompt": "abc", "max_tokens": 0, "echo": True},
        ):  # fmt: skip
            usage = (await api.complete(**body)).json()["usage"]
            prompt, generated = prompt + usage["prompt_tokens"], generated + usage["completion_tokens"]
        samples = await scraped(api)
        assert samples[("octavo:prompt_tokens_total",)] == prompt
        assert samples[("octavo:generation_tokens_total",)] == generated
        assert samples[("octavo:request_prompt_tokens_sum",)] == prompt
        assert samples[("octavo:request_generation_tokens_sum",)] == generated
        assert samples[("octavo:e2e_request_latency_seconds_count",)] == 6
        assert samples[("octavo:request_params_n_sum",)] == 1 + 2 * 2 + 1 + 1 + 1
        assert samples[("octavo:http_requests_total", "/v1/completions", "200", "POST")] == 5

    run(test)


def test_tokens_of_an_aborted_stream_are_counted_too() -> None:
    async def test(api: Api) -> None:
        call = Call(api.app, "/v1/chat/completions", {"messages": HELLO, "stream": True, **LONG})
        while api.engine.stats.generated_tokens < 10:
            await asyncio.sleep(0.005)
        await call.leave()
        samples = await scraped(api)
        assert samples[("octavo:generation_tokens_total",)] >= 9
        assert samples[("octavo:prompt_tokens_total",)] > 0
        assert samples[("octavo:e2e_request_latency_seconds_count",)] == 0  # no answer, no latency

    run(test, step_delay=0.005)


def test_a_grammar_check_is_counted_by_its_result() -> None:
    async def test(api: Api) -> None:
        from octavo.client.base import Prompt
        from octavo.server.core.account import Account
        from octavo.server.core.work import Work
        from octavo.types import SamplingParams

        metrics, account = api.app.state.serving.metrics, Account("x")
        prompt = Prompt(token_ids=[1, 2], grammar="start: /a/")
        async with await Work.start(api.engine, metrics, [prompt], SamplingParams(max_tokens=2), account) as work:
            await work.finish()

        class Refusing:
            async def generate(self, *_: Any) -> Any:
                raise RequestError("no grammar", param="grammar")

        with pytest.raises(RequestError):
            await Work.start(Refusing(), metrics, [prompt], SamplingParams(), account)  # type: ignore[arg-type]
        samples = await scraped(api)
        assert samples[("octavo:grammar_checks_total", "ok")] == 1
        assert samples[("octavo:grammar_checks_total", "refused")] == 1
        assert samples[("octavo:grammar_check_seconds_count",)] == 2

    run(test)


VLLM = """
num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total prefix_cache_hits_total
num_preemptions_total prompt_tokens_total generation_tokens_total request_success_total
time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket request_time_per_output_token_seconds_bucket
e2e_request_latency_seconds_bucket request_queue_time_seconds_bucket request_prefill_time_seconds_bucket
request_decode_time_seconds_bucket request_inference_time_seconds_bucket request_prompt_tokens_bucket
request_generation_tokens_bucket request_params_n_bucket request_params_max_tokens_bucket cache_config_info
""".split()  # noqa: SIM905


def test_what_the_server_holds_is_shown() -> None:
    async def test(api: Api) -> None:
        assert {v for k, v in (await scraped(api)).items() if k[0].startswith("octavo:stored")} == {0}
        body = {"input": "a", "max_output_tokens": 2}
        assert (await api.http.post("/v1/responses", json=body)).status_code == 200
        found = await scraped(api)
        assert found["octavo:stored_responses",] == 1 and found["octavo:stored_response_bytes",] > 100
        assert found["octavo:threads_waiting",] == 0

    run(test)


def test_vllms_names_are_there_from_the_first_scrape_and_carry_the_model() -> None:
    async def test(api: Api) -> None:
        text = (await api.http.get("/metrics")).text
        for name in VLLM:
            assert re.search(rf'^octavo:{name}\{{[^}}]*model_name="fake-model"', text, re.MULTILINE), name
        for reason in ("stop", "length", "tool_calls"):
            assert f'octavo:request_success_total{{finished_reason="{reason}",model_name="fake-model"}} 0.0' in text
        assert "process_resident_memory_bytes" in text

    run(test)


@pytest.mark.parametrize(
    ("accept", "kind", "parse"),
    [
        ("", "text/plain; version=", text_string_to_metric_families),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=", text_string_to_metric_families),
        (  # what Prometheus 2 sends, and 3
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0",
            openmetrics.text_string_to_metric_families,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3",
            "application/openmetrics-text; version=1.0.0",
            openmetrics.text_string_to_metric_families,
        ),
    ],
)
def test_the_exposition_is_what_the_scraper_accepts_and_parses(accept: str, kind: str, parse: Any) -> None:
    async def test(api: Api) -> None:
        await api.chat(n=2, max_tokens=5)
        await api.chat(max_tokens=5, model='odd "name"\n\\')
        response = await api.http.get("/metrics", headers={"accept": accept})
        assert response.headers["content-type"].startswith(kind)
        families = list(parse(response.text))
        assert len(families) == len({family.name for family in families})
        assert any(family.name == "octavo:num_requests_running" for family in families)
        for family in families:
            assert family.documentation and family.type != "unknown", family.name
            seen = [(s.name, *sorted(s.labels.items())) for s in family.samples]
            assert len(seen) == len(set(seen)), family.name
            if family.type == "histogram":
                _check_histogram(family)

    run(test)


def _check_histogram(family: Any) -> None:
    """Buckets rise with their limits up to the count."""
    by_labels: dict[Any, list[tuple[float, float]]] = {}
    for sample in family.samples:
        labels = {k: v for k, v in sample.labels.items() if k != "le"}
        if sample.name.endswith("_bucket"):
            by_labels.setdefault(tuple(labels.items()), []).append((float(sample.labels["le"]), sample.value))
    for buckets in by_labels.values():
        assert buckets == sorted(buckets) and buckets[-1][0] == float("inf")
        values = [value for _, value in buckets]
        assert values == sorted(values)


def test_the_totals_of_the_engine_go_on_when_it_is_replaced() -> None:
    totals = Totals()
    totals.take("a", Stats(num_running=3, steps=10, aborts=1, cpu_seconds=1.5))
    totals.take("a", Stats(num_running=2, steps=15, aborts=1, cpu_seconds=2.0))
    assert (totals.stats.num_running, totals.stats.steps, totals.stats.aborts) == (2, 15, 1)
    totals.lose()
    assert (totals.stats.num_running, totals.stats.steps) == (0, 15)
    totals.take("b", Stats(num_running=1, steps=4))
    totals.take("b", Stats(num_running=1, steps=6, preemptions=2))
    assert (totals.stats.steps, totals.stats.aborts, totals.stats.preemptions) == (21, 1, 2)
    assert totals.stats.cpu_seconds == 2.0
    gauges = {
        "num_waiting",
        "num_running",
        "blocks_total",
        "blocks_used",
        "blocks_cached",
        "fragmentation",
        "memory_mb",
        "grammar_bytes",
        "grammars_kept",
    }
    assert set(COUNTERS) | gauges == set(Stats.__struct_fields__), "a new field is a counter or a gauge"


# -- the log line


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [(r.getMessage(), {**r.fields, "id": r.request_id}) for r in caplog.records if r.name == "octavo.access"]


def test_one_line_for_each_request_tells_what_came_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")

    async def test(api: Api) -> None:
        headers = {"x-request-id": "mine"}
        body = {"messages": HELLO, "temperature": 0, "max_tokens": 4, "n": 2}
        await api.http.post("/v1/chat/completions", json=body, headers=headers)
        await api.chat(stream=True)
        await api.chat(temperature=-1)
        await api.http.get("/health")
        await api.http.get("/nowhere")

    run(test)
    (first, fields), (second, _), (third, refused), (fourth, _) = lines(caplog)
    assert re.fullmatch(r"POST /v1/chat/completions 200 in \d+ ms, \d+ \+ 8 tokens, length, from 127.0.0.1", first)
    assert fields.pop("ms") > 0 and fields.pop("prompt_tokens") > 0
    assert fields == {
        "id": "mine", "method": "POST", "route": "/v1/chat/completions", "status": 200, "completion_tokens": 8,
        "cached_tokens": 0, "finish_reason": "length", "client": "127.0.0.1",
    }  # fmt: skip
    assert "tokens, stop, from" in second and ", invalid_value, from" in third and refused["error"] == "invalid_value"
    assert re.fullmatch(r"GET /nowhere 404 in \d+ ms, not_found, from 127.0.0.1", fourth)


def test_no_text_of_a_request_or_answer_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")

    async def test(api: Api) -> None:
        await api.chat(messages=[{"role": "user", "content": "a-secret-question"}])
        await api.chat(messages=[{"role": "user", "content": "a-secret-question"}], stream=True, stop="fake")
        await api.http.get("/nowhere?key=a-secret-key")

    run(test, reply="a-secret-answer is fake")
    assert caplog.records and "a-secret" not in caplog.text + json.dumps([fields for _, fields in lines(caplog)])


def test_without_the_access_log_there_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")

    async def test(api: Api) -> None:
        assert (await api.chat()).status_code == 200

    run(test, ServerConfig(access_log=False))
    assert not lines(caplog)


def test_a_stream_that_fails_late_says_so_in_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")

    async def test(api: Api) -> None:
        assert "error" in events((await api.chat(stream=True)).text)[-1]

    run(test, fail_at=5)
    ((line, fields),) = lines(caplog)
    assert ", engine_error, from" in line and fields["status"] == 200 and fields["completion_tokens"] == 5


# -- /v1/metrics


class FakeNvml:
    """What of the driver's library is used."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.calls: list[Any] = []

    def nvmlInit(self) -> None:
        if self.broken:
            raise RuntimeError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.calls.append(index)
        return f"gpu{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.calls.append(uuid)
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> Any:
        return type("Memory", (), {"used": 3 << 20, "total": 80 << 30})

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> Any:
        return type("Rates", (), {"gpu": 42})

    def nvmlDeviceGetTemperature(self, _handle: str, _kind: int) -> int:
        return 55


@pytest.mark.parametrize(
    ("visible", "device", "asked"), [("", "cuda:1", 1), ("3,5", "cuda:1", 5), ("GPU-abc", "cuda", "GPU-abc")]
)
def test_the_gpu_is_the_one_the_engine_runs_on(
    visible: str, device: str, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = FakeNvml()
    machine = Machine(nvml)
    assert machine.gpu("cpu") is None and not nvml.calls
    state = machine.gpu(device)
    assert state == GpuState(int(device[5:] or 0), 42.0, 3.0, 81920.0, 55.0) and nvml.calls == [asked]
    machine.gpu(device)
    assert nvml.calls == [asked]  # a handle is asked for once


def test_a_driver_that_fails_is_no_gpu_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(FakeNvml(broken=True))
    assert machine.gpu("cuda:0") is None and machine.gpu("cuda:0") is None
    assert caplog.text.count("Driver Not Loaded") == 1


def test_v1_metrics_shows_the_gpu() -> None:
    async def test(api: Api) -> None:
        api.engine._info = type(api.engine._info)(**{**_fields(api.engine._info), "device": "cuda:0"})
        api.app.state.serving.machine._nvml = FakeNvml()
        assert (await api.http.get("/v1/metrics")).json()["gpu"] == {
            "device_id": 0, "utilization_percent": 42.0, "memory_used_mb": 3.0, "memory_total_mb": 81920.0,
            "temperature_celsius": 55.0,
        }  # fmt: skip

    run(test)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_the_load_of_the_processors_is_measured_over_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 12.5, 90.0])
    now = [100.0]
    monkeypatch.setattr("octavo.server.core.machine.psutil.cpu_percent", lambda: next(readings))
    monkeypatch.setattr("octavo.server.core.machine.time.monotonic", lambda: now[0])
    machine = Machine()
    seen = []
    for seconds in (0.1, 0.3, 0.2, 0.1, 0.6):
        now[0] += seconds
        seen.append(machine.cpu_percent())
    assert seen == [0.0, 0.0, 12.5, 12.5, 90.0]


# -- every face


FACES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 4},
    "/v1/completions": {"prompt": "abc", "max_tokens": 4},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": {"model": "fake-model", "messages": HELLO, "max_tokens": 4},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FACES)
def test_every_face_ends_in_the_same_books(path: str, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")

    async def test(api: Api) -> None:
        body = {**FACES[path], "temperature": 0, "stream": stream}
        assert (await api.post(path, **body)).status_code == 200
        assert await endings(api) == {"length": 1}
        api.engine.fail_at = 2
        await api.post(path, **body)
        await api.settled()
        assert await endings(api) == {"length": 1, "engine_error": 1}
        api.engine.fail_at = None
        running = Call(api.app, path, {**body, "max_tokens": 1000, "max_output_tokens": 1000})
        made = api.engine.stats.generated_tokens
        while api.engine.stats.generated_tokens < made + 3:
            await asyncio.sleep(0.005)
        await running.leave()
        await api.settled()
        assert await endings(api) == {"length": 1, "engine_error": 1, "abort": 1}

    run(test, step_delay=0.005)
    assert [fields.get("error", fields.get("finish_reason")) for _, fields in lines(caplog)] == [
        "length", "engine_error", "client_gone",
    ]  # fmt: skip
