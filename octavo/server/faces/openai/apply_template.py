"""POST /apply-template, as llama.cpp has it: the prompt that a chat request would become, as text."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.core.conversation import rendered
from octavo.server.core.serving import json_response, serving
from octavo.server.faces.openai.chat import conversation
from octavo.server.faces.openai.protocol.chat import ChatCompletionRequest
from octavo.server.http.decode import read

_decoder = msgspec.json.Decoder(ChatCompletionRequest)


class RenderedPrompt(msgspec.Struct, kw_only=True):
    prompt: str


async def apply_template(request: Request) -> Response:
    serve = serving(request)
    asked = await read(_decoder, request)
    asked.check()
    serve.model(asked.model)
    return json_response(RenderedPrompt(prompt=await rendered(serve, conversation(asked))))
