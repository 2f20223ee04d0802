"""An endpoint in a private folder, and a model folder that holds a byte tokenizer only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from paced import model_folder

from octavo.wire.endpoint import private_endpoint


@pytest.fixture
def endpoint() -> Iterator[str]:
    with private_endpoint() as address:
        yield address


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path)
