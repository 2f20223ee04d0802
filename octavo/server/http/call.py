"""One call of a face: its body decoded and checked, the model it is for, and its answer, streamed or whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.core.account import Account
from octavo.server.core.defaults import Decodes
from octavo.server.core.serving import Served, Serving
from octavo.server.core.work import Work
from octavo.server.http.decode import read, require_json
from octavo.server.http.endpoint import Endpoint
from octavo.server.http.failures import account_of
from octavo.server.http.stream import Source


class Asked(Protocol):
    """A body."""

    @property
    def model(self) -> str | None: ...

    def check(self) -> None:
        """What can be known without the model. Raises RequestError."""
        ...


T = TypeVar("T", bound=Asked)


@dataclass(frozen=True)
class Call(Generic[T]):
    request: Request
    asked: T
    serving: Serving
    served: Served
    account: Account

    @classmethod
    async def read(cls, request: Request, decoder: Decodes[T], *, generates: bool = False) -> Call[T]:
        """`generates`: it is refused while the server is shutting down. Raises RequestError, ModelNotFound,
        UnsupportedMediaType, Unavailable."""
        require_json(request.headers)
        serve = serving(request)
        if generates:
            serve.inflight.refuse_when_draining()
        asked = await read(serve.defaults.decoder(decoder), request)
        asked.check()
        return cls(request, asked, serve, serve.find(asked.model), account_of(request.scope))

    def source(self, start: Callable[[], Awaitable[Work]]) -> Source:
        """Of an answer that is streamed."""
        return Source(start, self.account, self.serving.inflight)

    async def whole(
        self, start: Callable[[], Awaitable[Work]], made: Callable[[Work], Awaitable[msgspec.Struct]]
    ) -> Response:
        """The answer that is `made` of the work, once it has ended."""
        async with self.serving.inflight.watch(self.request.receive), await start() as work:
            return json_response(await made(work))


def serving(request: Request) -> Serving:
    found = request.app.state.serving
    assert isinstance(found, Serving)
    return found


def json_response(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def post(
    path: str,
    handler: Callable[[Call[T]], Awaitable[Response]],
    summary: str,
    *,
    asked: type[T],
    decoder: Callable[[type[T]], Decodes[T]] = msgspec.json.Decoder,
    generates: bool = False,
    **more: Any,
) -> Endpoint:
    """A route whose body is decoded and checked first. `generates`: refused while the server is shutting down."""
    decodes = decoder(asked)

    async def answer(request: Request) -> Response:
        return await handler(await Call.read(request, decodes, generates=generates))

    return Endpoint(path, answer, summary, method="POST", asked=asked, **more)
