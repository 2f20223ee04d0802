"""docs/robustness.md names a test for each fault and attack; each of these tests is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "robustness.md").read_text()
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", text)
    assert len(named) > 35
    missing = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert not missing


def test_every_row_names_one() -> None:
    rows = [line for line in (ROOT / "docs" / "robustness.md").read_text().splitlines() if line.startswith("| ")]
    assert all("`tests/" in row or row.endswith("| test |") for row in rows)
