"""What the OpenAI routes share: the app's parts, the model's name, ids of answers, usage and its place in a stream.

`Serving` is made once by app.py and read by every handler; nothing here is written after the start.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from octavo.client.base import Client
from octavo.errors import ApiError, ModelNotFound, Unavailable
from octavo.server.inflight import InFlight
from octavo.server.metrics import ServerMetrics
from octavo.server.openai.protocol import Performance, PromptTokensDetails, StreamOptions, Usage
from octavo.types import Metrics
from octavo.wire.messages import EngineInfo

INLINE_CHARS = 2048
"""Longer texts are tokenized in a thread, so that other streams keep their pace."""


@dataclass(frozen=True)
class Serving:
    client: Client
    inflight: InFlight
    metrics: ServerMetrics
    started: int
    """Unix seconds."""

    def info(self) -> EngineInfo:
        """Raises Unavailable while no engine was ever attached."""
        info = self.client.info
        if info is None:
            raise Unavailable("the model is loading; try again shortly", code="loading", retry_after=2)
        return info

    def model(self, asked: str | None) -> str:
        """The served name. Raises ModelNotFound for another one."""
        served = self.info().model
        if asked is not None and asked != served:
            raise ModelNotFound(f"the model {asked[:100]!r} does not exist; this server has {served!r}", param="model")
        return served

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[list[int]]:
        """Token ids of each text, off the event loop when that takes long."""
        tokenizer = self.client.tokenizer

        def encode() -> list[list[int]]:
            return [
                tokenizer.encode(text, add_special_tokens=add_special_tokens, max_tokens=max_tokens) for text in texts
            ]

        return encode() if sum(map(len, texts)) <= INLINE_CHARS else await asyncio.to_thread(encode)


@dataclass(frozen=True)
class Header:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> Header:
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)


class UsageTally:
    """The `usage` of a stream's chunks: absent, null, or so far."""

    def __init__(self, options: StreamOptions | None, prompt_tokens: int) -> None:
        self.wanted = options is not None and options.include_usage
        self.continuous = options is not None and options.continuous_usage_stats
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0

    def add(self, tokens: int) -> None:
        self._completion_tokens += tokens

    @property
    def of_chunk(self) -> Usage | UnsetType | None:
        if self.continuous:
            done = self._completion_tokens
            return Usage(
                prompt_tokens=self._prompt_tokens, completion_tokens=done, total_tokens=self._prompt_tokens + done
            )
        return None if self.wanted else UNSET


def serving(request: Request) -> Serving:
    found = request.app.state.serving
    assert isinstance(found, Serving)
    return found


def json_response(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def usage_of(each: Sequence[Metrics]) -> Usage:
    """Of one answer, however many prompts it had: tokens add up, prompts ran side by side."""
    prompt_tokens = sum(m.prompt_tokens for m in each)
    completion_tokens = sum(m.completion_tokens for m in each)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(m.cached_tokens for m in each)),
        performance=Performance(
            prefill_ms=round(max(m.prefill_ms for m in each), 3),
            decode_ms=round(max(m.decode_ms for m in each), 3),
            decode_iterations=max(m.decode_iterations for m in each),
            tokens_per_second=round(sum(m.tokens_per_second for m in each), 3),
            time_to_first_token_ms=round(min(m.time_to_first_token_ms for m in each), 3),
            queue_ms=round(max(m.queue_ms for m in each), 3),
        ),
    )


def renamed(error: ApiError, field: str, name: str) -> ApiError:
    """The same error naming the HTTP field instead of the client's own."""
    if error.param == field:
        error.param = name
    return error
