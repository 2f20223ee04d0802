"""/openapi.json and /docs: what the routes take and give, generated from the structs that decode and encode them.

The page is one small file without anything loaded from elsewhere: it works on a machine without internet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.server.errors import ErrorResponse

_PAGE = Path(__file__).with_name("docs.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_REF = "#/components/schemas/{name}"


class Described(Protocol):
    """A row of routes.ENDPOINTS, as far as it is told here."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def asked(self) -> Any: ...
    @property
    def given(self) -> Any: ...
    @property
    def streamed(self) -> Any: ...
    @property
    def example(self) -> dict[str, Any] | None: ...
    @property
    def is_documented(self) -> bool: ...


async def openapi(request: Request) -> Response:
    return Response(_document(request.app.state.endpoints), media_type="application/json")


async def page(_request: Request) -> Response:
    return Response(_html(), headers={"content-security-policy": _POLICY}, media_type="text/html")


@lru_cache(maxsize=1)
def _html() -> bytes:
    return _PAGE.read_bytes()


@lru_cache(maxsize=1)
def _document(endpoints: tuple[Described, ...]) -> bytes:
    return msgspec.json.encode(document(endpoints))


def document(endpoints: Sequence[Described]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    endpoints = [endpoint for endpoint in endpoints if endpoint.is_documented]
    types = [t for e in endpoints for t in (e.asked, e.given, e.streamed) if t is not None]
    _, components = msgspec.json.schema_components([*types, ErrorResponse], ref_template=_REF)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(_plain(endpoint.path), {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo.__version__, "description": "An OpenAI-compatible server."},
        "paths": paths,
        "components": {"schemas": components},
    }


def _plain(path: str) -> str:
    """The path without the converters of its parameters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _operation(endpoint: Described) -> dict[str, Any]:
    path, given = _plain(endpoint.path), endpoint.given
    content: dict[str, Any] = {"text/plain": {}} if given is None else {"application/json": {"schema": _ref(given)}}
    if endpoint.streamed is not None:
        content["text/event-stream"] = {"schema": _ref(endpoint.streamed)}
    problem = {"description": "Error", "content": {"application/json": {"schema": _ref(ErrorResponse)}}}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": re.sub(r"[/{}]+", "_", path).strip("_"),
        "responses": {"200": {"description": "Success", "content": content}, "default": problem},
    }
    if names := re.findall(r"\{(\w+)\}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if endpoint.asked is not None:
        body: dict[str, Any] = {"schema": _ref(endpoint.asked)}
        if endpoint.example is not None:
            body["example"] = endpoint.example
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    return operation


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
