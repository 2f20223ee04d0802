"""Octavo: a fast LLM inference engine and OpenAI-compatible server. Names are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "LLMEngine": "octavo.client.offline",
    "LLM": "octavo.client.offline",
    "AsyncLLMEngine": "octavo.client.offline",
    "SamplingParams": "octavo.types",
    "StructuredOutputs": "octavo.types",
    "Message": "octavo.types",
    "RequestOutput": "octavo.types",
    "Delta": "octavo.types",
    "OctavoError": "octavo.errors",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
