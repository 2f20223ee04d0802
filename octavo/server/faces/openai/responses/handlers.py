"""POST /v1/responses, and what is done with a stored response: retrieve, delete, list its input.

The streamed and the plain response are built from the same deltas (output.py); one that is kept enters the store when
it has ended. Nothing here waits for the engine outside a watch.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Container
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import ApiError, ContextLengthExceeded, Place, RequestError, Unsupported
from octavo.server.core.account import Account
from octavo.server.core.conversation import start
from octavo.server.core.store import ResponseStore, Stored
from octavo.server.core.turns import gathered
from octavo.server.core.work import Work
from octavo.server.faces.openai.protocol.responses import (
    ENCRYPTED,
    LOGPROBS,
    DeletedResponse,
    InputItemList,
    ResponseObject,
    ResponsesRequest,
)
from octavo.server.faces.openai.protocol.shared import Item
from octavo.server.faces.openai.responses import translate
from octavo.server.faces.openai.responses.events import ResponseEvents
from octavo.server.faces.openai.responses.items import listed
from octavo.server.faces.openai.responses.output import Manner, Output
from octavo.server.faces.openai.responses.tools import functions
from octavo.server.http.call import Call, json_response, serving
from octavo.server.http.failures import account_of
from octavo.types import Metrics

_item = msgspec.json.Decoder(Item)
MAX_LISTED = 100


async def create(call: Call[ResponsesRequest]) -> Response:
    header = {"id": f"resp_{uuid.uuid4().hex}", "created_at": int(time.time()), "model": call.served.name}
    previous_id = call.asked.previous_response_id
    store, account = call.serving.responses.of(call.account.owner), call.account
    chain = store.chain(previous_id) if previous_id is not None else []
    account.charge(sum(stored.num_item_bytes for stored in chain), "previous_response_id")
    known = {item_id for stored in chain for item_id, _ in stored.items}
    num_bytes = len(await call.request.body())
    inputs = await gathered(num_bytes, lambda: listed(call.asked.input))
    referred = await gathered(num_bytes, lambda: _referred(inputs, known, store, account))
    num_bytes += account.charged
    exchange = await gathered(num_bytes, lambda: _Exchange(call, header, chain, inputs, referred))
    if call.asked.stream:
        return ResponseEvents(call.source(exchange.start), exchange.manner, exchange.begun, exchange.ended)
    return await call.whole(exchange.start, exchange.whole)


class _Exchange:
    """One request on its way to a response. Made in a thread when it is long."""

    def __init__(
        self,
        call: Call[ResponsesRequest],
        header: dict[str, Any],
        chain: list[Stored],
        inputs: list[Item],
        referred: dict[str, bytes],
    ) -> None:
        """`referred`: JSON of the items that the input refers to, but for those of the chain."""
        self._call = call
        self._asked = asked = call.asked
        kept = [items for stored in chain for items in (stored.inputs, stored.outputs)]
        before = [[_item.decode(item) for _, item in items] for items in kept]
        known = {item["id"] for items in before for item in items}
        found = {item_id: _item.decode(item) for item_id, item in referred.items()}
        inputs = [item for item in inputs if item["type"] != "item_reference" or item["id"] not in known]
        inputs = [found[item["id"]] if item["type"] == "item_reference" else item for item in inputs]
        kept_inputs = inputs if asked.store is not False else []
        self._kept_inputs = tuple((str(item["id"]), msgspec.json.encode(item)) for item in kept_inputs)
        self._turns = translate.turns_of(asked, before, inputs)
        self._functions = functions(asked.tools or [])
        self._wanted = translate.conversation(asked, self._turns, self._functions)
        self.begun = translate.response(asked, header, call.served.client.defaults)
        self.manner = Manner(call.served.client.tokenizer, self._functions.spaces, asked.includes(ENCRYPTED))

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
        output = Output(self.manner)
        arrived = await work.finish(merge=False)

        def take() -> ResponseObject:
            for _, delta in arrived:
                output.take(delta)
            return translate.finished(self.begun, output, work.metrics[0])

        is_long = self._asked.includes(LOGPROBS)
        return self._kept(await asyncio.to_thread(take) if is_long else take())

    def ended(self, output: Output, metrics: Metrics, error: ApiError | None) -> ResponseObject:
        """The response whose stream has ended, well or with an error; kept."""
        if error is None:
            return self._kept(translate.finished(self.begun, output, metrics))
        return self._kept(translate.failed(self.begun, output, error, metrics))

    def _kept(self, response: ResponseObject) -> ResponseObject:
        if not response.store:
            return response
        stored = Stored(
            id=response.id,
            previous_id=self._asked.previous_response_id,
            body=msgspec.json.encode(response),
            inputs=self._kept_inputs,
            outputs=tuple((item.id, msgspec.json.encode(item)) for item in response.output),
        )
        store = self._call.serving.responses.of(self._call.account.owner)
        if not store.keeps(stored.num_bytes):
            return msgspec.structs.replace(response, store=False)
        store.put(stored)
        return response


async def retrieve(request: Request) -> Response:
    if request.query_params.get("stream", "false").lower() not in ("false", "0"):
        raise Unsupported("a stored response is not streamed; leave stream out", param="stream")
    return Response(_stored(request).body, media_type="application/json")


async def delete(request: Request) -> Response:
    response_id = request.path_params["response_id"]
    _store(request).delete(response_id)
    return json_response(DeletedResponse(id=response_id))


async def cancel(request: Request) -> Response:
    _stored(request)
    raise RequestError("Only responses created with background=true can be cancelled, and there are none here.")


async def input_items(request: Request) -> Response:
    """A page of what came in, the newest first unless `order=asc`; `after`: the id of the last item seen."""
    items = list(_stored(request).inputs)
    query = request.query_params
    if query.get("order", "desc") not in ("asc", "desc"):
        raise RequestError.about("order", "must be asc or desc")
    if query.get("order", "desc") == "desc":
        items.reverse()
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_LISTED):
        raise RequestError.about("limit", f"must be a number from 1 to {MAX_LISTED}")
    if (after := query.get("after")) is not None:
        positions = [i for i, (item_id, _) in enumerate(items) if item_id == after]
        if not positions:
            raise RequestError(f"Item with id {after[:100]!r} not found.", param="after")
        items = items[positions[0] + 1 :]
    shown = items[: int(limit)]
    first, last = (shown[0][0], shown[-1][0]) if shown else (None, None)
    data: list[Any] = [msgspec.Raw(item) for _, item in shown]
    return json_response(InputItemList(data=data, first_id=first, last_id=last, has_more=len(shown) < len(items)))


def _store(request: Request) -> ResponseStore:
    return serving(request).responses.of(account_of(request.scope).owner)


def _stored(request: Request) -> Stored:
    return _store(request).get(request.path_params["response_id"])


def _referred(inputs: list[Item], known: Container[str], store: ResponseStore, account: Account) -> dict[str, bytes]:
    """The JSON of the items that are referred to and not `known`; each reference is charged to the account. Raises
    RequestError where one is not known."""
    found: dict[str, bytes] = {}
    for index, item in enumerate(inputs):
        item_id = item["id"]
        if item["type"] != "item_reference" or item_id in known:
            continue
        if item_id not in found:
            referred = store.item(item_id)
            if referred is None:
                raise RequestError(f"Item with id {item_id[:100]!r} not found.", param=Place("input", index))
            found[item_id] = referred
        account.charge(len(found[item_id]), Place("input", index))
    return found
