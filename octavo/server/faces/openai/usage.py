"""What every OpenAI-compatible answer carries: id, time and model, and the usage with its place in a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from octavo.errors import ApiError
from octavo.server.core.serving import Served
from octavo.server.faces.openai.errors import error_body
from octavo.server.faces.openai.protocol.shared import (
    CompletionTokensDetails,
    Performance,
    PromptTokensDetails,
    StreamOptions,
    Usage,
)
from octavo.server.http.sse import DONE, event
from octavo.server.http.stream import EventStream, Source
from octavo.types import Metrics


def header_of(served: Served, prefix: str) -> dict[str, Any]:
    """The fields that all chunks of one answer repeat."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint(),
    }


class Chunks(EventStream):
    """A stream of chunks in OpenAI's form: how it ends, and the `usage` of each chunk."""

    def __init__(self, source: Source, header: dict[str, Any], options: StreamOptions | None) -> None:
        super().__init__(source)
        self.header = header
        self._shows_usage = options is not None and options.include_usage
        self.counts = options is not None and options.include_usage and options.continuous_usage_stats
        """Every chunk tells the usage so far."""
        self.num_tokens = 0
        """That have come, where chunks count them."""

    def last(self, usage: Usage) -> bytes:
        """The chunk without choices."""
        raise NotImplementedError

    @property
    def usage(self) -> Usage | UnsetType | None:
        """Of a chunk: absent, null, or so far."""
        if self.counts:
            prompt, done = self.work.prompt_tokens, self.num_tokens
            return Usage(prompt_tokens=prompt, completion_tokens=done, total_tokens=prompt + done)
        return None if self._shows_usage else UNSET

    def end(self) -> bytes:
        return self.last(usage_of(self.work.metrics)) + DONE if self._shows_usage else DONE

    def fail(self, error: ApiError) -> bytes:
        return event(error_body(error))


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
