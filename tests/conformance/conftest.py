"""One server for all of these tests: the application over the fake engine, on a real port.

CONFORMANCE_URL=http://127.0.0.1:8000 runs them against a server that is there already, whatever its model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sys.path.append(str(Path(__file__).parents[1] / "server"))
from patience import PATIENCE_S
from server_harness import live


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where the server is, without /v1."""
    if given := os.environ.get("CONFORMANCE_URL"):
        yield given.rstrip("/")
        return
    with live(max_model_len=4096) as server:
        yield server.url


@pytest.fixture(scope="session")
def model(url: str) -> str:
    return str(httpx.get(url + "/v1/models", timeout=PATIENCE_S).json()["data"][0]["id"])
