"""What every face of the server shares: the app's parts, the model's name, tokenizing off the event loop.

`Serving` is made once by app.py and read by every handler; nothing here is written after the start
but what its members own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.client.base import Client
from octavo.errors import ApiError, ModelNotFound, Place, Unavailable
from octavo.server.core.inflight import InFlight
from octavo.server.core.machine import Machine
from octavo.server.core.metrics import ServerMetrics
from octavo.server.faces.openai.responses.store import ResponseStore
from octavo.wire.messages import EngineInfo

REQUEST_ID = "octavo.request_id"
"""Key of the scope: the id that every answer carries and every log line names."""
INLINE_CHARS = 2048
"""Longer texts are tokenized in a thread, so that other streams keep their pace."""


@dataclass(frozen=True)
class Serving:
    client: Client
    inflight: InFlight
    metrics: ServerMetrics
    started: int
    """Unix seconds."""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    """Names of families (text/toolcalls) and tags (text/channels); None: as the model's template shows."""
    machine: Machine = field(default_factory=Machine)
    responses: ResponseStore = field(default_factory=ResponseStore)

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

    def fingerprint(self) -> str:
        """Of what computes: while it stays the same, a seed gives the same answer."""
        info = self.info()
        parts = (octavo.__version__, info.model, info.model_path, info.dtype, info.device, info.backend)
        return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]

    async def encode(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        max_tokens: int | None = None,
    ) -> list[list[int]]:
        """Token ids of each text, off the event loop when that takes long. Arguments as Tokenizer.encode has them."""
        encode_one = partial(
            self.client.tokenizer.encode,
            add_special_tokens=add_special_tokens,
            parse_special=parse_special,
            max_tokens=max_tokens,
        )

        def encode() -> list[list[int]]:
            return [encode_one(text) for text in texts]

        return encode() if sum(map(len, texts)) <= INLINE_CHARS else await asyncio.to_thread(encode)


def serving(request: Request) -> Serving:
    found = request.app.state.serving
    assert isinstance(found, Serving)
    return found


def request_id(request: Request) -> str:
    return str(request.scope.get(REQUEST_ID, ""))


def json_response(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def renamed(error: ApiError, field: str, name: str) -> ApiError:
    """The same error naming the HTTP field instead of the client's own."""
    if error.param == field:
        error.place = Place(name)
    return error
