"""Where the tests of this folder run: on the GPU where there is one; elsewhere on a device that only defers its work,
as far as that tells something. benchmarks/gpu/engine.sh runs them on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]

from engines import HAS_GPU, NO_GPU


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.skipif(HAS_GPU, reason="there is a real device")),
        pytest.param("cuda", marks=NO_GPU),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """fake or cuda."""
    return str(request.param)


@pytest.fixture
def gpu() -> None:
    """What it asks for runs on a GPU alone."""
    if not HAS_GPU:
        pytest.skip("no GPU")
