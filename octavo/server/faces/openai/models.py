"""GET /v1/models and /v1/models/{id}: the one model that is served; in Anthropic's form for its clients."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.server.core.serving import Serving, json_response, serving
from octavo.server.faces.anthropic import models as anthropic
from octavo.server.faces.anthropic.errors import is_spoken
from octavo.server.faces.openai.protocol.models import Model, ModelList


def _served(serve: Serving) -> Model:
    info = serve.info()
    return Model(id=info.model, created=serve.started, root=info.model, max_model_len=info.max_model_len)


async def list_models(request: Request) -> Response:
    serve = serving(request)
    return json_response(anthropic.listed(serve) if is_spoken(request.scope) else ModelList(data=[_served(serve)]))


async def retrieve_model(request: Request) -> Response:
    serve = serving(request)
    serve.model(request.path_params["model"])
    return json_response(anthropic.served(serve) if is_spoken(request.scope) else _served(serve))
