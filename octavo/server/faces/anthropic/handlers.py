"""POST /v1/messages and /v1/messages/count_tokens, in Anthropic's form, over the conversation that all faces share."""

from __future__ import annotations

import uuid

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import ApiError
from octavo.server.core.conversation import Conversation, render, start
from octavo.server.core.serving import Serving, json_response, request_id, serving
from octavo.server.core.turns import Turns, gathered
from octavo.server.core.work import Work
from octavo.server.faces.anthropic import translate
from octavo.server.faces.anthropic.blocks import Blocks, MessageEvents, ending, usage
from octavo.server.faces.anthropic.protocol import AnthropicMessage, CountTokensRequest, MessagesRequest, TokenCount
from octavo.server.http.decode import read
from octavo.server.http.sse import EventStream, Writer

_messages = msgspec.json.Decoder(MessagesRequest)
_count = msgspec.json.Decoder(CountTokensRequest)


async def messages(request: Request) -> Response:
    serve = serving(request)
    serve.inflight.refuse_when_draining()
    asked = await read(_messages, request)
    asked.check()
    model = serve.model(asked.model)
    turns, wanted = await gathered(
        len(await request.body()), lambda: translate.conversation(asked, request_id(request))
    )
    message_id = f"msg_{uuid.uuid4().hex}"
    if asked.stream:

        async def stream() -> tuple[Work, Writer]:
            work = await _start(serve, asked, wanted, turns)
            return work, MessageEvents(asked, message_id, model, work)

        return _with_id(EventStream(stream, serve.inflight), request)
    async with serve.inflight.watch(request.receive):
        work = await _start(serve, asked, wanted, turns)
        blocks = Blocks()
        async with work:
            for _, delta in await work.finish(merge=False):
                blocks.take(delta)
    reason, sequence = ending(asked, blocks, work.metrics[0])
    message = AnthropicMessage(
        id=message_id,
        model=model,
        content=blocks.content,
        stop_reason=reason,
        stop_sequence=sequence,
        usage=usage(work.metrics[0]),
    )
    return _with_id(json_response(message), request)


async def count_tokens(request: Request) -> Response:
    serve = serving(request)
    asked = await read(_count, request)
    serve.model(asked.model)
    turns, wanted = await gathered(len(await request.body()), lambda: translate.to_count(asked))
    try:
        ids = await render(serve, wanted, is_bounded=False)
    except ApiError as error:
        raise translate.refusal(error, turns, asked.tools or [], wanted) from None
    return _with_id(json_response(TokenCount(input_tokens=len(ids))), request)


async def _start(serve: Serving, asked: MessagesRequest, wanted: Conversation, turns: Turns) -> Work:
    try:
        try:
            return await start(serve, wanted)
        except ApiError as error:
            if error.param != "thinking_budget":
                raise
            return await start(serve, translate.unbounded(wanted))
    except ApiError as error:
        raise translate.refusal(error, turns, asked.tools or [], wanted) from None


def _with_id(response: Response, request: Request) -> Response:
    response.headers["request-id"] = request_id(request)
    return response
