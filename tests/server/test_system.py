"""Health, readiness, metrics, docs; what the server's import costs."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_harness import HELLO, Api, error_of, run

from octavo.client.fake import FakeClient
from octavo.config import ServerConfig
from octavo.server.app import create_app
from octavo.server.routes import ENDPOINTS, SITE


def test_health_and_ready() -> None:
    async def test(api: Api) -> None:
        assert (await api.http.get("/health")).json() == {"status": "healthy", "service": "octavo"}
        assert (await api.http.get("/ready")).json() == {"status": "ready", "model_loaded": True}
        assert (await api.http.head("/health")).status_code == 200
        assert (await api.http.get("/live")).json() == {"status": "alive"}

    run(test)


def test_before_the_model_is_loaded_all_but_health_is_503_with_retry_after() -> None:
    async def main() -> None:
        app = create_app(FakeClient(), ServerConfig(), SITE)  # its lifespan never starts: nothing was ever attached
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            assert (await http.get("/health")).status_code == 200
            ready = await http.get("/ready")
            assert ready.status_code == 503 and ready.json()["model_loaded"] is False and ready.headers["retry-after"]
            for stream in (True, False):
                response = await http.post("/v1/chat/completions", json={"messages": HELLO, "stream": stream})
                assert error_of(response, 503)["type"] == "unavailable_error" and response.headers["retry-after"]
            error_of(await http.get("/v1/models"), 503)
            error_of(await http.post("/tokenize", json={"prompt": "x"}), 503)
            assert (await http.get("/metrics")).status_code == 200
            assert (await http.get("/v1/metrics")).status_code == 200

    asyncio.run(main())


def test_system_metrics_have_exactly_the_documented_keys() -> None:
    async def test(api: Api) -> None:
        body = (await api.http.get("/v1/metrics")).json()
        assert set(body) == {"cpu", "memory", "gpu", "kv", "queue", "timestamp"}
        assert set(body["cpu"]) == {"utilization_percent", "core_count"}
        assert set(body["memory"]) == {"used_mb", "total_mb", "available_mb"}
        assert set(body["kv"]) == {"blocks_total", "blocks_used", "blocks_cached", "fragmentation"}
        assert set(body["queue"]) == {"waiting", "running"}
        assert body["gpu"] is None and abs(body["timestamp"] - time.time()) < 10
        assert 0 < body["memory"]["available_mb"] <= body["memory"]["total_mb"]

    run(test)


def test_prometheus_counts_what_happened() -> None:
    async def test(api: Api) -> None:
        await api.chat(n=2, max_tokens=5)
        await api.chat(stream=True)
        error_of(await api.chat(temperature=-1), 400)
        response = await api.http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        samples = {
            (s.name, *sorted(v for k, v in s.labels.items() if k != "model_name")): s.value
            for family in text_string_to_metric_families(response.text)
            for s in family.samples
        }
        assert samples["octavo:request_success_total", "length"] == 2
        assert samples["octavo:request_success_total", "stop"] == 1
        assert samples[("octavo:time_to_first_token_seconds_count",)] == 3
        assert samples[("octavo:inter_token_latency_seconds_count",)] > 10
        assert samples[("octavo:e2e_request_latency_seconds_count",)] == 2
        assert samples[("octavo:generation_tokens_total",)] >= 10 + 60
        assert samples[("octavo:prompt_tokens_total",)] == 42
        assert samples[("octavo:num_requests_running",)] == 0
        assert samples[("octavo:kv_cache_usage_perc",)] == 0
        assert samples["octavo:http_requests_total", "/v1/chat/completions", "200", "POST"] == 2
        assert samples["octavo:http_requests_total", "/v1/chat/completions", "400", "POST"] == 1
        assert ("octavo:num_preemptions_total",) in samples and ("octavo:engine_restarts_total",) in samples

    run(test)


def test_openapi_is_made_of_the_structs_and_complete() -> None:
    async def test(api: Api) -> None:
        document = (await api.http.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        routes = {endpoint.path.replace(":path", "") for endpoint in ENDPOINTS} - {"/docs", "/openapi.json"}
        assert set(document["paths"]) == routes
        schemas = document["components"]["schemas"]
        for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
            assert name in schemas
        chat = schemas["ChatCompletionRequest"]["properties"]
        assert {"temperature", "messages", "max_completion_tokens", "stream_options", "tools", "logit_bias"} <= set(
            chat
        )
        assert schemas["ChatCompletionRequest"]["required"] == ["messages"]

    run(test)


def test_docs_page_needs_nothing_from_elsewhere() -> None:
    async def test(api: Api) -> None:
        response = await api.http.get("/docs")
        assert response.headers["content-type"].startswith("text/html")
        assert "https://" not in response.text and "http://" not in response.text and "src=" not in response.text
        assert "prefers-color-scheme: dark" in response.text
        assert 'id="key" type="password"' in response.text and "localStorage" not in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]

    run(test)


HEAVY = {"torch", "transformers", "triton", "numpy", "huggingface_hub", "httpx2", "rich", "jsonschema"}
STARTED = {
    "octavo.server.process": (
        520,
        {
            *("typer", "tokenizers", "jinja2", "llguidance", "opentelemetry", "octavo.modelfiles.hub", "octavo.engine"),
            *("octavo.config.hardware", "octavo.grammar.schema", "octavo.grammar.regexes", "octavo.grammar.gbnf"),
        },
    ),
    "octavo.supervisor.entry": (140, {"octavo.supervisor.supervisor", "octavo.server", "octavo.engine", "psutil"}),
    "octavo.cli.app, octavo.supervisor.supervisor": (280, {"uvicorn", "starlette", "octavo.server", "octavo.engine"}),
}


@pytest.mark.parametrize("modules", STARTED)
def test_processes_start_without_torch_and_little_else(modules: str) -> None:
    """What an import takes goes by their number; benchmarks/startup.py measures the seconds."""
    most, unwanted = STARTED[modules]
    code = f"import sys; before = set(sys.modules); import {modules}; print(*set(sys.modules) - before)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = set(printed.split())
    assert not found & (unwanted | HEAVY)
    assert found.issuperset(modules.split(", ")) and len(found) < most


def test_a_model_with_several_names() -> None:
    async def test(api: Api) -> None:
        listed = (await api.http.get("/v1/models")).json()["data"]
        assert [(model["id"], model["root"]) for model in listed] == [("big", "big"), ("gpt-4o", "big"), ("a/b", "big")]
        for name in ("big", "gpt-4o", "a/b"):
            found = (await api.http.get(f"/v1/models/{name}")).json()
            assert (found["id"], found["root"]) == (name, "big")
            answer = (await api.post("/v1/completions", prompt="a", model=name, max_tokens=1)).json()
            assert answer["model"] == "big"
        message = error_of(await api.post("/v1/completions", prompt="a", model="b"), 404)["message"]
        assert "'big'" in message and "'a/b'" in message
        version = {"anthropic-version": "2023-06-01"}
        listed = (await api.http.get("/v1/models", headers=version)).json()
        assert [model["id"] for model in listed["data"]] == ["big", "gpt-4o", "a/b"]
        assert (listed["first_id"], listed["last_id"]) == ("big", "a/b")
        assert (await api.http.get("/v1/models/gpt-4o", headers=version)).json()["display_name"] == "gpt-4o"

    run(test, model="big", aliases=("gpt-4o", "a/b"))
