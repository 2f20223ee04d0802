"""GET /v1/models and /v1/models/{id}: the models that are served, in OpenAI's form; in Anthropic's for clients that say
`anthropic-version`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.core.serving import Served
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


class AnthropicModel(msgspec.Struct, kw_only=True):
    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class AnthropicModelList(msgspec.Struct, kw_only=True):
    data: list[AnthropicModel]
    first_id: str
    last_id: str
    has_more: bool = False


def _model(served: Served, name: str, started: int) -> Model:
    """The entry of one of its names."""
    return Model(id=name, created=started, root=served.name, max_model_len=served.info.max_model_len)


def _anthropic(served: Served, name: str, started: int) -> AnthropicModel:
    created = datetime.fromtimestamp(started, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    most = served.info.max_model_len
    return AnthropicModel(id=name, display_name=name, created_at=created, max_input_tokens=most, max_tokens=most)


async def list_models(request: Request) -> Response:
    serve = serving(request)
    names = [(served, name) for served in serve.models for name in served.names]
    if not is_spoken(request.scope):
        return json_response(ModelList(data=[_model(*each, serve.started) for each in names]))
    found = [_anthropic(*each, serve.started) for each in names]
    return json_response(AnthropicModelList(data=found, first_id=found[0].id, last_id=found[-1].id))


async def retrieve_model(request: Request) -> Response:
    serve = serving(request)
    name = request.path_params["model"]
    entry = _anthropic if is_spoken(request.scope) else _model
    return json_response(entry(serve.find(name), name, serve.started))
