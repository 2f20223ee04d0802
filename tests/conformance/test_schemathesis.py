"""schemathesis against /openapi.json: nothing a request holds brings a 5xx; every status, header and body is as told.

CONFORMANCE_EXAMPLES=500 asks for more than the quick run. A served model (CONFORMANCE_URL) wants a short context for
this, as of `--max-model-len 256`: some requests ask for 128 answers that fill it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from server_harness import live

from octavo.config import ServerConfig

EXAMPLES = os.environ.get("CONFORMANCE_EXAMPLES", "8")
LIMIT_S = 3600 if {"CONFORMANCE_EXAMPLES", "CONFORMANCE_URL"} & os.environ.keys() else 300  # 30 s on a core of its own
OPEN = {"/health", "/live", "/ready"}
NOT_EXPRESSIBLE = "positive_data_acceptance"
"""A schema cannot say that a prompt fits the context, that best_of is at least n, or that a grammar can be enforced."""
KNOWN_ROUTES = "unsupported_method"
"""GET /v1/chat/completions is a route of OpenAI's that is not served: a 404 that names it, as a 405 would not."""


def run(url: str, folder: Path, *options: str) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", url + "/openapi.json"]
    command += ["--exclude-checks", f"{NOT_EXPRESSIBLE},{KNOWN_ROUTES}"]
    command += ["--seed", "1", "--no-color", "--warnings", "off"]
    command += ["--request-timeout", "100", *options]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S + 5)
def test_what_openapi_json_says_is_true(url: str, tmp_path: Path) -> None:
    run(url, tmp_path, "--phases", "examples,coverage,fuzzing", "-n", EXAMPLES)


@pytest.mark.long
def test_what_it_says_of_keys_is_true(tmp_path: Path) -> None:
    """With a key all is as told; without one, or with another, every route is the 401 that is told."""
    with live(ServerConfig(api_key=("sk-1",), drain_timeout=5)) as server:
        options = ["--phases", "examples", "-H", "Authorization: Bearer sk-1"]
        run(server.url, tmp_path, *options)
        document = httpx.get(server.url + "/openapi.json", headers={"x-api-key": "sk-1"}).json()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                assert ("security" in operation) == (path not in OPEN)
                answer = httpx.request(method, server.url + path, headers={"authorization": "Bearer sk-2"})
                assert answer.status_code == (200 if path in OPEN else 401)


def test_every_route_tells_its_failures(url: str) -> None:
    document = httpx.get(url + "/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            told = set(operation["responses"])
            assert {"200", "500"} <= told and "default" not in told and "422" not in told, path
            if "requestBody" in operation:
                assert {"400", "413", "415"} <= told, path
            for status in {"429", "503"} & told:
                assert "retry-after" in operation["responses"][status]["headers"], path


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_served_model_is_the_only_one_told(url: str, model: str, path: str) -> None:
    document = httpx.get(url + "/openapi.json").json()
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    asked = document["components"]["schemas"][body.rpartition("/")[2]]["properties"]["model"]
    assert [option.get("enum", "null") for option in asked["anyOf"]] == [[model], "null"]
