"""POST /v1/responses, and what is done with a stored response: retrieve, delete, list its input.

The streamed and the plain response are built from the same deltas (output.py); one that is kept enters the store when
it has ended. Nothing here waits for the engine outside a watch.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import ApiError, ContextLengthExceeded, RequestError, Unsupported
from octavo.server.core.conversation import start
from octavo.server.core.store import Stored
from octavo.server.core.turns import gathered
from octavo.server.core.work import Work
from octavo.server.faces.openai.protocol.responses import (
    ENCRYPTED,
    DeletedResponse,
    InputItemList,
    ResponseObject,
    ResponsesRequest,
)
from octavo.server.faces.openai.protocol.shared import Item
from octavo.server.faces.openai.responses import translate
from octavo.server.faces.openai.responses.events import ResponseEvents
from octavo.server.faces.openai.responses.items import listed, resolved
from octavo.server.faces.openai.responses.output import Output
from octavo.server.faces.openai.responses.tools import functions
from octavo.server.faces.openai.usage import Header
from octavo.server.http.call import Call, json_response, serving
from octavo.server.http.failures import account_of

_decoder = msgspec.json.Decoder(ResponsesRequest)
_items = msgspec.json.Decoder(list[Item])
_body = msgspec.json.Decoder(dict[str, Any])
MAX_LISTED = 100


async def create(request: Request) -> Response:
    call = await Call.read(request, _decoder, generates=True)
    header = Header(f"resp_{uuid.uuid4().hex}", int(time.time()), call.served.name)
    previous_id = call.asked.previous_response_id
    chain = call.serving.responses.chain(previous_id, call.account.owner) if previous_id is not None else []
    num_bytes = len(await request.body()) + sum(stored.num_bytes for stored in chain)
    exchange = await gathered(num_bytes, lambda: _Exchange(call, header, chain))
    return await call.answered(exchange.start, exchange.whole, exchange.events if call.asked.stream else None)


class _Exchange:
    """One request on its way to a response. Made in a thread when it is long."""

    def __init__(self, call: Call[ResponsesRequest], header: Header, chain: list[Stored]) -> None:
        self._call = call
        self._asked = asked = call.asked
        self._store = store = call.serving.responses
        owner = call.account.owner
        before = [items for stored in chain for items in (_items.decode(stored.input_items), _output_of(stored))]
        known = {item["id"] for items in before for item in items}
        self._input = resolved(
            [item for item in listed(asked.input) if item["type"] != "item_reference" or item["id"] not in known],
            lambda item_id: _item_of(store.holder(item_id, owner), item_id),
        )
        self._turns = translate.turns_of(asked, before, self._input)
        self._functions = functions(asked.tools or [])
        self._wanted = translate.conversation(asked, self._turns, self._functions)
        self._begun = translate.response(asked, header, call.served.client.defaults)
        self._seals = asked.includes(ENCRYPTED)

    async def start(self) -> Work:
        """With `truncation: "auto"` the oldest turns are left out until the rest fits."""
        wanted = self._wanted
        while True:
            try:
                return await start(self._call.served, wanted, self._call.account)
            except ApiError as error:
                is_long = isinstance(error, ContextLengthExceeded) and self._asked.truncation == "auto"
                shorter = translate.shortened(wanted) if is_long else None
                if shorter is None:
                    raise translate.refusal(error, self._turns, wanted, self._functions) from None
                wanted = shorter

    async def whole(self, work: Work) -> ResponseObject:
        output = Output(self._call.served.client.tokenizer, self._functions.spaces, seals=self._seals)
        for _, delta in await work.finish(merge=False):
            output.take(delta)
        return self._kept(translate.finished(self._begun, output, work.metrics[0]))

    def events(self, work: Work) -> ResponseEvents:
        tokenizer = self._call.served.client.tokenizer

        def finished(output: Output) -> ResponseObject:
            return self._kept(translate.finished(self._begun, output, work.metrics[0]))

        def failed(output: Output, error: ApiError) -> ResponseObject:
            return self._kept(translate.failed(self._begun, output, error, work.metrics[0]))

        return ResponseEvents(self._begun, finished, failed, tokenizer, self._functions.spaces, seals=self._seals)

    def _kept(self, response: ResponseObject) -> ResponseObject:
        if response.store:
            ids = [str(item["id"]) for item in self._input] + [item.id for item in response.output]
            self._store.put(
                Stored(
                    id=response.id,
                    owner=self._call.account.owner,
                    previous_id=self._asked.previous_response_id,
                    body=msgspec.json.encode(response),
                    input_items=msgspec.json.encode(self._input),
                    item_ids=tuple(ids),
                )
            )
        return response


async def retrieve(request: Request) -> Response:
    if request.query_params.get("stream", "false").lower() not in ("false", "0"):
        raise Unsupported("a stored response is not streamed; leave stream out", param="stream")
    return Response(_stored(request).body, media_type="application/json")


async def delete(request: Request) -> Response:
    response_id = request.path_params["response_id"]
    serving(request).responses.delete(response_id, account_of(request.scope).owner)
    return json_response(DeletedResponse(id=response_id))


async def cancel(request: Request) -> Response:
    _stored(request)
    raise RequestError("Only responses created with background=true can be cancelled, and there are none here.")


async def input_items(request: Request) -> Response:
    """A page of what came in, the newest first unless `order=asc`; `after`: the id of the last item seen."""
    items = _items.decode(_stored(request).input_items)
    query = request.query_params
    if query.get("order", "desc") not in ("asc", "desc"):
        raise RequestError("order must be asc or desc", param="order")
    if query.get("order", "desc") == "desc":
        items.reverse()
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_LISTED):
        raise RequestError(f"limit must be a number from 1 to {MAX_LISTED}", param="limit")
    if (after := query.get("after")) is not None:
        positions = [i for i, item in enumerate(items) if item["id"] == after]
        if not positions:
            raise RequestError(f"Item with id {after[:100]!r} not found.", param="after")
        items = items[positions[0] + 1 :]
    shown = items[: int(limit)]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return json_response(InputItemList(data=shown, first_id=first, last_id=last, has_more=len(shown) < len(items)))


def _stored(request: Request) -> Stored:
    return serving(request).responses.get(request.path_params["response_id"], account_of(request.scope).owner)


def _output_of(stored: Stored) -> list[Item]:
    found: list[Item] = _body.decode(stored.body)["output"]
    return found


def _item_of(stored: Stored | None, item_id: str) -> Item | None:
    if stored is None:
        return None
    every = [*_items.decode(stored.input_items), *_output_of(stored)]
    return next((item for item in every if item["id"] == item_id), None)
