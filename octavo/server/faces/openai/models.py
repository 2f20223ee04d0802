"""GET /v1/models and /v1/models/{id}: the models that are served; in Anthropic's form for its clients."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.core.serving import Served
from octavo.server.faces.anthropic import models as anthropic
from octavo.server.faces.anthropic.errors import is_spoken
from octavo.server.http.call import json_response, serving


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


def _model(served: Served, name: str, started: int) -> Model:
    """The entry of one of its names."""
    return Model(id=name, created=started, root=served.name, max_model_len=served.info.max_model_len)


async def list_models(request: Request) -> Response:
    serve = serving(request)
    if is_spoken(request.scope):
        return json_response(anthropic.listed(serve))
    return json_response(
        ModelList(data=[_model(served, name, serve.started) for served in serve.models for name in served.names])
    )


async def retrieve_model(request: Request) -> Response:
    serve = serving(request)
    name = request.path_params["model"]
    served = serve.find(name)
    entry = anthropic.model if is_spoken(request.scope) else _model
    return json_response(entry(served, name, serve.started))
