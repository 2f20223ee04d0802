"""/openapi.json and /docs: what the routes take and give, generated from the structs that decode and encode them.

Invariant: a route answers with no status that is not told here, and every one told can come. The page is one small file
without anything loaded from elsewhere: it works on a machine without internet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.server.faces.openai.errors import ErrorResponse
from octavo.server.http.call import serving
from octavo.server.http.endpoint import Endpoint

_PAGE = Path(__file__).with_name("docs.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_REF = "#/components/schemas/{name}"
_WHY = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "Without keys: Host is none of the server's names, or a web page of another site asked.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is larger than the server takes.",
    415: "The body is not declared as JSON in UTF-8, or is compressed.",
    429: "Too many requests: wait as long as Retry-After says.",
    500: "The server or its engine failed; the log has the details under the request's id.",
    503: "The model is loading, or the server is about to end: try again as Retry-After says.",
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
"""Either is enough."""
_REQUEST_ID = {
    "description": "The client's own `x-request-id` when it is short and printable, else a fresh one.",
    "required": True,
    "schema": {"type": "string"},
}
_RETRY_AFTER = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 0}}


async def openapi(request: Request) -> Response:
    info = serving(request).models[0].client.info
    state = request.app.state
    # Everybody may read it: what the server's owner serves is told to those who have a key.
    model = None if info is None or state.have_keys else info.model
    return Response(_document(state.endpoints, model, state.have_keys), media_type="application/json")


async def page(_request: Request) -> Response:
    return Response(_PAGE.read_bytes(), headers={"content-security-policy": _POLICY}, media_type="text/html")


@lru_cache(maxsize=4)
def _document(endpoints: tuple[Endpoint, ...], model: str | None, have_keys: bool) -> bytes:
    return msgspec.json.encode(document(endpoints, model, have_keys))


def document(endpoints: Sequence[Endpoint], model: str | None = None, have_keys: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 document. `model`: the served name, once it is known. `have_keys`: requests need one."""
    endpoints = [replace(e, problem=e.problem or ErrorResponse) for e in endpoints if e.is_documented]
    bodies = [(e.asked, e.given, e.streamed, e.problem, *e.special.values()) for e in endpoints]
    types = [kind for group in bodies for kind in group if kind is not None]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    for name in {e.asked.__name__ for e in endpoints if e.asked is not None}:
        components[name] = _as_taken(components[name], model)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, model)
        if have_keys and not endpoint.is_open:
            operation["security"] = [{name: []} for name in _KEYS]
        paths.setdefault(_plain(endpoint.path), {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo.__version__, "description": "An OpenAI-compatible server."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _KEYS},
    }


def _as_taken(schema: dict[str, Any], model: str | None) -> dict[str, Any]:
    """The schema of a body as decode.py takes it: a null at the top is a field that was left out."""
    required = set(schema.get("required", ()))
    properties = {
        name: field if name in required else _or_null(field) for name, field in schema.get("properties", {}).items()
    }
    if model is not None and "model" in properties:
        name = {"enum": [model], "type": "string", "description": "The served model's name."}
        properties["model"] = name if "model" in required else _or_null(name)
    return {**schema, "properties": properties}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    options = field.get("anyOf")
    if options is None and not field.keys() - {"description", "default"}:
        return field  # anything
    if options is not None:
        return field if {"type": "null"} in options else {**field, "anyOf": [*options, {"type": "null"}]}
    inner = {key: value for key, value in field.items() if key != "default"}
    return {"anyOf": [inner, {"type": "null"}], "default": field.get("default")}


def _plain(path: str) -> str:
    """The path without the converters of its parameters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _operation(endpoint: Endpoint, model: str | None) -> dict[str, Any]:
    path = _plain(endpoint.path)
    verb = "_create" if endpoint.asked is not None else "_delete" if endpoint.method == "DELETE" else ""
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": re.sub(r"[/{}]+", "_", path).strip("_") + verb,  # which tells those of one path apart
        "responses": _responses(endpoint),
    }
    if names := re.findall(r"\{(\w+)\}", path):
        operation["parameters"] = [_path_parameter(name, model) for name in names]
    if endpoint.asked is not None:
        body: dict[str, Any] = {"schema": _ref(endpoint.asked)}
        if endpoint.example is not None:
            body["example"] = endpoint.example
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    return operation


def _path_parameter(name: str, model: str | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1}
    if name == "model" and model is not None:
        schema = {"type": "string", "enum": [model]}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    given = endpoint.given
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}} if given is None else _json(given)
    if endpoint.streamed is not None:
        content["text/event-stream"] = {"schema": _event(endpoint)}
    found = {"200": {"description": "Success", "headers": {"x-request-id": _REQUEST_ID}, "content": content}}
    for status in sorted({*_statuses(endpoint), *endpoint.special}):
        headers = {"x-request-id": _REQUEST_ID}
        if status in (429, 503):
            headers["retry-after"] = _RETRY_AFTER
        body = _json(endpoint.special.get(status, endpoint.problem))
        found[str(status)] = {"description": _WHY[status], "headers": headers, "content": body}
    return found


def _statuses(endpoint: Endpoint) -> set[int]:
    """Which failures can come, by what the route does."""
    found = {500} if endpoint.is_open else {401, 403, 429, 500}
    if endpoint.asked is not None:
        found |= {400, 408, 413, 415}
    if endpoint.needs_model:
        found.add(503)
    if "{" in endpoint.path or (endpoint.asked is not None and "model" in endpoint.asked.__struct_fields__):
        found.add(404)
    return found


def _event(endpoint: Endpoint) -> dict[str, Any]:
    """One server-sent event: a chunk, or the failure that ends the stream; OpenAI's routes close with `[DONE]`."""
    payload = {"anyOf": [_ref(endpoint.streamed), _ref(endpoint.problem)]}
    chunk = {"type": "string", "contentMediaType": "application/json", "contentSchema": payload}
    data = {"anyOf": [{"const": "[DONE]"}, chunk]}
    return {"type": "object", "required": ["data"], "properties": {"event": {"type": "string"}, "data": data}}


def _json(kind: Any) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(kind)}}


def _ref(kind: Any) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
