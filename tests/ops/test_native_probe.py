"""The machine's limits, as benchmarks hold kernels against them."""

from __future__ import annotations

import pytest

pytest.importorskip("octavo.kernels.cpu._native", reason="the native kernels are not built")

from octavo.kernels.cpu import _native


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("kind", ["int8", "bf16", "f32"])
def test_every_rate_is_there(kind: str, isa: str) -> None:
    assert _native.probe(_native.Pool(1), kind, isa) > 1e8


def test_other_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="no limit called 'int3'"):
        _native.probe(_native.Pool(1), "int3", "portable")
    with pytest.raises(ValueError, match="cannot run"):
        _native.probe(_native.Pool(1), "int8", "avx1024")
