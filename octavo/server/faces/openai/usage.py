"""What every OpenAI-compatible answer carries: id, time and model, and the usage with its place in a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from octavo.server.faces.openai.protocol.shared import (
    CompletionTokensDetails,
    Performance,
    PromptTokensDetails,
    StreamOptions,
    Usage,
)
from octavo.types import Metrics


@dataclass(frozen=True)
class Header:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str | None = None

    @classmethod
    def new(cls, prefix: str, model: str, fingerprint: str | None = None) -> Header:
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model, fingerprint)


class UsageTally:
    """The `usage` of a stream's chunks: absent, null, or so far."""

    prompt_tokens = 0

    def __init__(self, options: StreamOptions | None) -> None:
        self.wanted = options is not None and options.include_usage
        self.continuous = options is not None and options.include_usage and options.continuous_usage_stats
        self._completion_tokens = 0

    def add(self, tokens: int) -> None:
        self._completion_tokens += tokens

    @property
    def of_chunk(self) -> Usage | UnsetType | None:
        if self.continuous:
            prompt, done = self.prompt_tokens, self._completion_tokens
            return Usage(prompt_tokens=prompt, completion_tokens=done, total_tokens=prompt + done)
        return None if self.wanted else UNSET


def usage_of(each: Sequence[Metrics]) -> Usage:
    """Of one answer, however many prompts it had: tokens add up, prompts ran side by side."""
    prompt_tokens = sum(m.prompt_tokens for m in each)
    completion_tokens = sum(m.completion_tokens for m in each)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(m.cached_tokens for m in each)),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=sum(m.reasoning_tokens for m in each)),
        performance=Performance(
            prefill_ms=round(max(m.prefill_ms for m in each), 3),
            decode_ms=round(max(m.decode_ms for m in each), 3),
            decode_iterations=max(m.decode_iterations for m in each),
            tokens_per_second=round(sum(m.tokens_per_second for m in each), 3),
            time_to_first_token_ms=round(min(m.time_to_first_token_ms for m in each), 3),
            queue_ms=round(max(m.queue_ms for m in each), 3),
        ),
    )
