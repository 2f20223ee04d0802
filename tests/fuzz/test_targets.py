"""The fuzz targets on their seeds, on damaged seeds, and on inputs that once went wrong. `make fuzz` goes further."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import targets

FOUND: list[tuple[str, bytes]] = [
    ("toolcalls", b'\xff\xff\x00{"name": "f", "parameters": {"a": [1, {"b": n "f"eter, "parameters": {"a": 1}}'),
]
"""(target, input): what fuzzing has found; each was mended."""


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    if targets.app.cache_info().currsize:
        targets.app().close()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_and_damaged_seeds(name: str) -> None:
    rng = random.Random(7)
    for seed in targets.seeds(name):
        targets.TARGETS[name](seed)
    for _ in range(40):
        data = bytearray(rng.choice(targets.seeds(name)))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 3))
        targets.TARGETS[name](bytes(data))


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_stays_mended(name: str, data: bytes) -> None:
    targets.TARGETS[name](data)
