"""Traces: one span for each generating request at a collector of our own, and none of it in the request's way."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from patience import PATIENCE_S
from server_harness import HELLO, Api, Call, run

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.server.http import tracing
from octavo.server.http.tracing import Tracing, traces_url

pytest.importorskip("opentelemetry.sdk.trace")

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP. `delay`: seconds before it answers; `status`: with what."""

    daemon_threads = True

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status, self.delay = 200, 0.0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self.path, self.rfile.read(int(self.headers["content-length"])))
                time.sleep(collector.delay)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def take(self, path: str, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.paths.append(path)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
            for scope in group.scope_spans:
                self.spans += scope.spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def traced(url: str, test: Callable[[Api], Coroutine[Any, Any, None]], **fake: Any) -> None:
    """Runs it against an app whose spans go to `url`; when this returns they were sent."""
    run(test, ServerConfig(otlp_endpoint=url), **fake)


def attributes(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(v) for v in found.values] if kind == "array_value" else found

    return {a.key: plain(a.value) for a in span.attributes}


def test_a_generating_request_is_one_span_that_says_what_it_did(collector: Collector) -> None:
    before = time.time_ns()

    async def test(api: Api) -> None:
        body = {"messages": HELLO, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 3}
        await api.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
        for path in ("/health", "/metrics", "/v1/models"):
            await api.http.get(path)
        await api.post("/tokenize", prompt="abc")

    traced(collector.url, test, step_delay=0.01)
    (span,) = collector.spans
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "octavo" and collector.resources[0]["service.version"]
    assert span.name == "chat fake-model" and span.kind == span.SPAN_KIND_SERVER
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    found = attributes(span)
    assert found.pop("gen_ai.latency.e2e") == pytest.approx(seconds, abs=1e-6) and seconds > 0.05
    latencies = {key for key in found if key.startswith("gen_ai.latency.")}
    assert latencies == {
        "gen_ai.latency." + name
        for name in (
            *("time_in_queue", "time_to_first_token", "time_in_model_prefill", "time_in_model_decode"),
            "time_in_model_inference",
        )
    }
    assert all(0 <= found.pop(key) <= seconds for key in latencies)
    assert found.pop("gen_ai.usage.input_tokens") > 0
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.id": "mine",
        "gen_ai.request.model": "fake-model",
        "gen_ai.response.model": "fake-model",
        "gen_ai.request.n": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_the_callers_trace_goes_on(collector: Collector, stream: bool) -> None:
    async def test(api: Api) -> None:
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=x"}
        body = {"prompt": "abc", "stream": stream}
        await api.http.post("/v1/completions", json=body, headers=headers)
        for wrong in ("", "garbage", "00-" + "0" * 32 + f"-{PARENT_ID}-01", "x" * 5000):
            await api.http.post("/v1/completions", json=body, headers={"traceparent": wrong})
        unsampled = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
        await api.http.post("/v1/completions", json=body, headers=unsampled)

    traced(collector.url, test)
    first, *others = collector.spans
    assert len(others) == 4, "the caller of the last one wants none"
    assert (first.trace_id.hex(), first.parent_span_id.hex(), first.trace_state) == (TRACE_ID, PARENT_ID, "vendor=x")
    assert first.name == "text_completion fake-model"
    assert all(span.trace_id.hex() != TRACE_ID and not span.parent_span_id for span in others)


@pytest.mark.parametrize("stream", [False, True])
def test_failures_and_aborts_are_spans_too(collector: Collector, stream: bool) -> None:
    async def test(api: Api) -> None:
        await api.chat(stream=stream, temperature=-1)
        call = Call(api.app, "/v1/chat/completions", {"messages": HELLO, "stream": stream, "max_tokens": 1000})
        while api.engine.stats.generated_tokens < 3:
            await asyncio.sleep(0.005)
        await call.leave()
        api.engine.fail_at = 2
        await api.chat(stream=stream)

    traced(collector.url, test, step_delay=0.005)
    refused, left, failed = collector.spans
    assert [attributes(span)["error.type"] for span in collector.spans] == [
        "invalid_value", "client_gone", "engine_error",
    ]  # fmt: skip
    assert refused.status.code == left.status.code == 0 and failed.status.code == failed.status.STATUS_CODE_ERROR
    assert (
        attributes(left)["gen_ai.usage.output_tokens"] >= 2 and attributes(refused)["http.response.status_code"] == 400
    )


def test_the_log_line_names_the_trace(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")

    async def test(api: Api) -> None:
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        await api.http.post("/v1/completions", json={"prompt": "abc"}, headers=headers)

    traced(collector.url, test)
    (record,) = [record for record in caplog.records if record.name == "octavo.access"]
    assert record.fields["trace_id"] == TRACE_ID  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", ["nobody listens", "it answers 500", "it never answers"])
def test_a_bad_collector_delays_and_fails_nothing(
    collector: Collector, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.3)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    url = collector.url
    if fault == "nobody listens":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    collector.status = 500 if "500" in fault else 200
    collector.delay = PATIENCE_S if "never" in fault else 0.0

    async def test(api: Api) -> None:
        answers = await asyncio.gather(*(api.chat(max_tokens=3) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        await asyncio.sleep(0.1)

    began = time.monotonic()
    traced(url, test)
    assert time.monotonic() - began < PATIENCE_S / 2, "the end waits for the collector"
    assert "Traceback" not in caplog.text
    assert sum("collector does not take traces" in record.getMessage() for record in caplog.records) <= 1


def test_the_environment_names_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-models")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")

    async def test(api: Api) -> None:
        await api.complete()

    traced(collector.url, test)
    assert collector.resources[0]["service.name"] == "my-models"
    assert collector.resources[0]["deployment.environment"] == "test"


def test_without_the_library_the_option_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[otel\]'"):
        Tracing("http://localhost:4318")


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "grpc://host:4317", "http://", "http://host:99999", "http://[x"]
)
def test_an_endpoint_that_is_no_url_is_an_error(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-endpoint"):
        Tracing(endpoint)


def test_the_path_of_a_collector_is_the_usual_one_unless_given() -> None:
    assert traces_url("http://a:4318") == traces_url("http://a:4318/") == "http://a:4318/v1/traces"
    assert traces_url("https://a/otlp/traces") == "https://a/otlp/traces"
