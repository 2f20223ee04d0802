"""Two served tiny models: one with few rows, few pages and slow steps; one that is fast, for what comes in masses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import SMALL, Octavo
from tiny import write_tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def model(folder: Path) -> str:
    return str(write_tiny_model(folder / "tiny"))


@pytest.fixture(scope="module")
def octavo(folder: Path, model: str) -> Iterator[Octavo]:
    """Steps take at least 5 ms."""
    command = Octavo(folder, "serve", model, "--port", "0", *SMALL, OCTAVO_FAULTS="step_delay_ms=5")
    try:
        yield command.started()
    finally:
        command.close()
