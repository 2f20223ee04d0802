"""The official Node clients: run where `npm install` was done in tests/conformance/node, which needs the network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from patience import PATIENCE_S

FOLDER = Path(__file__).with_name("node")


@pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules").is_dir(),
    reason="needs node and `npm install` in tests/conformance/node",
)
def test_the_node_clients_are_content(url: str) -> None:
    ran = subprocess.run(["node", "check.mjs", url], cwd=FOLDER, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
