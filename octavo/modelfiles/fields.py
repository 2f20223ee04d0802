"""Typed, range-checked look-up in a model file's key-value pairs; every refusal names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NoReturn

from octavo.errors import ModelFileError

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
MAX_POSITIONS = 1 << 30


class Fields:
    """Typed, range-checked look-up in one mapping of a model file. A JSON null counts as absent."""

    def __init__(self, file: str, values: dict[str, Any], prefix: str = "") -> None:
        self.file, self.values, self.prefix = file, values, prefix
        self.asked: set[str] = set()
        """Keys that somebody has looked up."""

    def fail(self, key: str, message: str) -> NoReturn:
        raise ModelFileError(self.file, f"{self.prefix}{key}: {message}")

    def get(self, key: str) -> Any:
        self.asked.add(key)
        return self.values.get(self.prefix + key)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """One integer. A list of equal integers (GGUF writes some values per layer) counts as that integer."""
        value = self.get(key)
        if isinstance(value, list) and value:
            if any(type(x) is not int or x != value[0] for x in value):
                self.fail(key, "differs between layers, which is not supported yet")
            value = value[0]
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if type(value) is not int:
            self.fail(key, f"{value!r:.80} is not an integer")
        if not low <= value <= high:
            self.fail(key, f"{value} is not within {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        """One finite number greater than `low`."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if type(value) not in (int, float):
            self.fail(key, f"{value!r:.80} is not a number")
        if not low < value <= 1e30 or not math.isfinite(value):
            self.fail(key, f"{value!r:.80} is not a finite number above {low:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            self.fail(key, f"{value!r:.80} is not true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str | None:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not str:
            self.fail(key, f"{value!r:.80} is not a string")
        return value

    def part(self, key: str) -> Fields | None:
        """The object under `key`, or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"{value!r:.80} is not an object")
        return Fields(self.file, value)


def refuse_architecture(file: str, architecture: str, served: Iterable[str]) -> NoReturn:
    """One that is not served. `served`: those of this kind of file that are."""
    raise ModelFileError(
        file, f"architecture {architecture!r:.80} is not supported yet; supported: {', '.join(sorted(served))}"
    )


def heads_of(fields: Fields, hidden: int, heads_key: str, kv_key: str, dim_key: str) -> tuple[int, int, int]:
    """(heads, kv heads, head_dim), consistent with one another."""
    heads = fields.integer(heads_key, high=65536)
    kv_heads = fields.integer(kv_key, heads, high=65536)
    if heads % kv_heads:
        fields.fail(kv_key, f"{kv_heads} does not divide the {heads} heads")
    if fields.get(dim_key) is None and hidden % heads:
        fields.fail(heads_key, f"{heads} does not divide the hidden size {hidden}, and {dim_key} is missing")
    head_dim = fields.integer(dim_key, hidden // heads, high=65536)
    if head_dim % 2:
        fields.fail(dim_key, f"{head_dim} is odd, and a rotary embedding turns pairs")
    return heads, kv_heads, head_dim
