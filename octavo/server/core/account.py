"""What came of one HTTP request: for its log line, its counters and its span.

Opened around every request and handed down with it; whoever generates, refuses or answers writes into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from octavo.errors import ApiError, Field, RequestError
from octavo.types import Metrics, SamplingParams


class Allowance(Protocol):
    """What a request may still ask for."""

    def admit(self, prompt_tokens: int, num_prompts: int, params: SamplingParams) -> SamplingParams:
        """→ the parameters that the work is to run with. Raises ApiError when it is too much."""
        ...


MAX_CHARGED = 16 << 20
"""Bytes that a request may refer to, or ask for in one answer, beside what it sends."""


@dataclass(slots=True)
class Account:
    request_id: str
    client: str = ""
    """Where it comes from: an address, or unix."""
    key: str = ""
    """The name of its API key, never the key; empty where there are none."""
    status: int = 0
    """Of the answer; 0: none was sent."""
    seconds: float = 0.0
    """From the first byte of the request to the last of the answer, once it is closed."""
    error: ApiError | None = None
    model: str = ""
    charged: int = 0
    """Bytes, of MAX_CHARGED."""
    owner: str = ""
    """Whom the request belongs to, as an opaque text; empty where there are no keys."""
    allowance: Allowance | None = None
    """Of its API key; None for a request that asks for no work."""
    is_streamed: bool = False
    """The answer leaves piece by piece; nothing of it is gathered here."""
    params: SamplingParams | None = None
    """Set when something is generated."""
    num_open: int = 0
    """Prompts whose generation has not ended."""
    metrics: list[Metrics] = field(default_factory=list)
    """One for each prompt that was generated, once that has ended, however it ended."""
    finish_reasons: list[str] = field(default_factory=list)
    """One per choice that has finished."""

    def charge(self, num_bytes: int, what: Field) -> None:
        """So many bytes more are about to be read or made for the request. Raises RequestError that names the field
        by which it asks for them."""
        if self.charged + num_bytes > MAX_CHARGED:
            raise RequestError(
                f"{what}: with it the request refers to or asks for up to {self.charged + num_bytes} bytes, of "
                f"{MAX_CHARGED} that one may; ask for less at once",
                param=what,
                code="request_too_costly",
            )
        self.charged += num_bytes

    def fail(self, error: ApiError) -> None:
        """The first failure is the one that counts."""
        if self.error is None:
            self.error = error

    @property
    def code(self) -> str | None:
        """Why it failed, in a word; None when it did not."""
        if self.error is not None:
            return self.error.code or self.error.type
        return f"http_{self.status}" if self.status >= 400 else None

    @property
    def complete(self) -> bool:
        """All that was to be generated was; its reader may still have left before the last byte."""
        return self.params is not None and not self.num_open

    @property
    def prompt_tokens(self) -> int:
        return sum(m.prompt_tokens for m in self.metrics)

    @property
    def cached_tokens(self) -> int:
        return sum(m.cached_tokens for m in self.metrics)

    @property
    def completion_tokens(self) -> int:
        return sum(m.completion_tokens for m in self.metrics)
