"""schemathesis against /openapi.json: nothing a request holds brings a 5xx; every status, header and body is as told.

CONFORMANCE_EXAMPLES=500 asks for more than the quick run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

EXAMPLES = os.environ.get("CONFORMANCE_EXAMPLES", "15")
NOT_EXPRESSIBLE = "positive_data_acceptance"
"""A schema cannot say that a prompt fits the context, that best_of is at least n, or that a grammar can be enforced."""


def test_what_openapi_json_says_is_true(url: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", url + "/openapi.json"]
    command += ["--phases", "examples,coverage,fuzzing", "--exclude-checks", NOT_EXPRESSIBLE, "--seed", "1"]
    command += ["-n", EXAMPLES, "--no-color", "--warnings", "off"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100 + int(EXAMPLES) * 20)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


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
