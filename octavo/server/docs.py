"""/openapi.json and /docs: what the routes take and give, generated from the structs that decode and encode them.

The page is one small file without anything loaded from elsewhere: it works on a machine without internet.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.server import system
from octavo.server.errors import ErrorResponse
from octavo.server.openai import protocol

_PAGE = Path(__file__).with_name("docs.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_REF = "#/components/schemas/{name}"

_ROUTES: tuple[tuple[str, str, str, Any, Any], ...] = (
    (
        "post", "/v1/chat/completions", "Answer a conversation; with `stream: true` as server-sent events.",
        protocol.ChatCompletionRequest, protocol.ChatCompletion,
    ),
    (
        "post", "/v1/completions", "Continue texts or token ids; with `stream: true` as server-sent events.",
        protocol.CompletionRequest, protocol.Completion,
    ),
    ("get", "/v1/models", "The served model.", None, protocol.ModelList),
    ("get", "/v1/models/{model}", "One model by its name.", None, protocol.Model),
    ("post", "/tokenize", "Token ids of a text or conversation.", protocol.TokenizeRequest, protocol.TokenizeResponse),
    ("post", "/detokenize", "The text of token ids.", protocol.DetokenizeRequest, protocol.DetokenizeResponse),
    ("get", "/health", "200 while the server lives.", None, system.Health),
    ("get", "/ready", "200 once the model answers, else 503.", None, system.Ready),
    ("get", "/v1/metrics", "The machine and the engine as JSON.", None, system.SystemMetrics),
    ("get", "/metrics", "Counters, histograms and gauges for Prometheus.", None, None),
)  # fmt: skip
_STREAMS = {
    "/v1/chat/completions": protocol.ChatCompletionChunk,
    "/v1/completions": protocol.Completion,
}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 64,
    },
    "/v1/completions": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
    "/tokenize": {"prompt": "Hello world"},
    "/detokenize": {"tokens": [1, 2, 3]},
}


async def openapi(_request: Request) -> Response:
    return Response(_document(), media_type="application/json")


async def page(_request: Request) -> Response:
    return Response(_html(), headers={"content-security-policy": _POLICY}, media_type="text/html")


@lru_cache(maxsize=1)
def _html() -> bytes:
    return _PAGE.read_bytes()


@lru_cache(maxsize=1)
def _document() -> bytes:
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    types = [t for _, _, _, asked, given in _ROUTES for t in (asked, given) if t is not None]
    types += [*_STREAMS.values(), ErrorResponse]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, Any] = {}
    for method, path, summary, asked, given in _ROUTES:
        paths.setdefault(path, {})[method] = _operation(path, summary, asked, given)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo.__version__, "description": "An OpenAI-compatible server."},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(path: str, summary: str, asked: Any, given: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {}} if given is None else {"application/json": {"schema": _ref(given)}}
    if path in _STREAMS:
        content["text/event-stream"] = {"schema": _ref(_STREAMS[path])}
    problem = {"description": "Error", "content": {"application/json": {"schema": _ref(ErrorResponse)}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {"200": {"description": "Success", "content": content}, "default": problem},
    }
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if asked is not None:
        body: dict[str, Any] = {"schema": _ref(asked)}
        if path in _EXAMPLES:
            body["example"] = _EXAMPLES[path]
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    return operation


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
