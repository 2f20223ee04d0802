"""POST /apply-template, as llama.cpp has it: the prompt that a chat request would become, as text."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.core.conversation import rendered
from octavo.server.faces.openai.protocol.chat import ChatCompletionRequest
from octavo.server.faces.openai.translate import conversation
from octavo.server.faces.openai.written import WrittenDecoder
from octavo.server.http.call import Call, json_response

_decoder = WrittenDecoder(ChatCompletionRequest)


class RenderedPrompt(msgspec.Struct, kw_only=True):
    prompt: str


async def apply_template(request: Request) -> Response:
    call = await Call.read(request, _decoder)
    return json_response(RenderedPrompt(prompt=await rendered(call.served, conversation(call.asked), call.account)))
