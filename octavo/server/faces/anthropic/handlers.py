"""POST /v1/messages and /v1/messages/count_tokens, in Anthropic's form, over the conversation that all faces share."""

from __future__ import annotations

import uuid

from starlette.responses import Response

from octavo.errors import ApiError
from octavo.server.core import conversation as core
from octavo.server.core.account import Account
from octavo.server.core.conversation import render
from octavo.server.core.turns import gathered, reworded
from octavo.server.core.work import Work
from octavo.server.faces.anthropic import translate
from octavo.server.faces.anthropic.blocks import Blocks, MessageEvents, ending, usage
from octavo.server.faces.anthropic.protocol import AnthropicMessage, CountTokensRequest, MessagesRequest, TokenCount
from octavo.server.http.call import Call, json_response
from octavo.types import SamplingParams

COUNTED = SamplingParams(max_tokens=1)


async def messages(call: Call[MessagesRequest]) -> Response:
    asked, model = call.asked, call.served.name
    num_bytes = len(await call.request.body())
    turns, wanted = await gathered(num_bytes, lambda: translate.conversation(asked, translate.sampling(asked)))
    message_id = f"msg_{uuid.uuid4().hex}"

    async def start() -> Work:
        with reworded(lambda error: translate.refusal(error, turns, asked.tools or [], wanted)):
            try:
                return await core.start(call.served, wanted, call.account)
            except ApiError as error:
                if error.param != "thinking_budget":
                    raise
                return await core.start(call.served, translate.unbounded(wanted), call.account)

    async def whole(work: Work) -> AnthropicMessage:
        blocks = Blocks()
        for _, delta in await work.finish(merge=False):
            blocks.take(delta)
        reason, sequence = ending(asked, blocks, work.metrics[0])
        return AnthropicMessage(
            id=message_id,
            model=model,
            content=blocks.content,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=usage(work.metrics[0]),
        )

    if asked.stream:
        return _with_id(MessageEvents(call.source(start), asked, message_id, model), call.account)
    return _with_id(await call.whole(start, whole), call.account)


async def count_tokens(call: Call[CountTokensRequest]) -> Response:
    asked = call.asked
    turns, wanted = await gathered(len(await call.request.body()), lambda: translate.conversation(asked, COUNTED))
    with reworded(lambda error: translate.refusal(error, turns, asked.tools or [], wanted)):
        ids = await render(call.served, wanted, call.account, is_bounded=False)
    return _with_id(json_response(TokenCount(input_tokens=len(ids))), call.account)


def _with_id(response: Response, account: Account) -> Response:
    response.headers["request-id"] = account.request_id
    return response
