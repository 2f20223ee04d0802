"""The web application: routes, what surrounds them, and the state they share.

Handlers are plain functions from request to response; bodies are decoded by msgspec, once. Starlette alone: FastAPI on
top of it would add 0.2 s to the start and nothing that is used here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from octavo.client.base import Client
from octavo.config import ServerConfig
from octavo.config.keys import api_keys
from octavo.config.sizes import parse_bytes
from octavo.errors import ApiError
from octavo.server.core.defaults import Defaults
from octavo.server.core.inflight import InFlight
from octavo.server.core.limits import quotas
from octavo.server.core.metrics import ServerMetrics
from octavo.server.core.serving import Served, Serving
from octavo.server.core.store import ResponseStores
from octavo.server.http.auth import Callers, Gate
from octavo.server.http.context import RequestContext
from octavo.server.http.cors import Cors, checked_origins
from octavo.server.http.endpoint import Endpoint, Site
from octavo.server.http.failures import on_api_error, on_http_exception
from octavo.server.http.forwarded import Proxies
from octavo.server.http.local import Local
from octavo.server.http.middleware import BodyGuard
from octavo.server.http.request_log import RequestLog
from octavo.server.http.tracing import Tracing
from octavo.text.channels import reasoning_by_name
from octavo.text.toolcalls.registry import by_name


def create_app(client: Client, config: ServerConfig, site: Site) -> Starlette:
    """The application over a client, which it starts and closes with its lifespan. `app.state.serving` holds what
    the handlers share. Raises ConfigError for an option that is wrong."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await client.start()
        try:
            yield
        finally:
            await client.close()
            if tracing is not None:
                await tracing.close()

    tracing = Tracing(config.otlp_endpoint) if config.otlp_endpoint else None
    app = Starlette(lifespan=lifespan)
    metrics = ServerMetrics(client)
    app.state.endpoints = site.endpoints
    keys = api_keys(config)
    callers = Callers(keys, quotas(config, len(keys)), share_prefix_cache=config.share_prefix_cache)
    app.state.serving = _serving(client, config, metrics, len(callers))
    app.router.redirect_slashes = False
    # From the inside out.
    open_paths = frozenset(endpoint.path for endpoint in site.endpoints if endpoint.is_open)
    app.state.have_keys = callers.have_keys
    app.add_middleware(Gate, callers=callers, open_paths=open_paths)
    max_body = parse_bytes(config.max_body_size, "--max-body-size")
    app.add_middleware(BodyGuard, limit=max_body, timeout=config.body_timeout)
    origins = checked_origins(config.cors_origin)
    if not callers.have_keys:
        app.add_middleware(
            Local, bound=None if config.uds else config.host, names=config.allowed_hosts, origins=origins
        )
    paths = _add_routes(app, site.endpoints)
    if config.log_requests:
        app.add_middleware(RequestLog, paths=paths)
    app.add_middleware(
        RequestContext,
        metrics=metrics,
        paths=paths,
        wording=site.wording,
        access_log=config.access_log,
        tracing=tracing,
        proxies=Proxies(config.trusted_proxies),
    )
    if origins:
        app.add_middleware(Cors, origins=origins)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception(site.unserved))
    return app


def _serving(client: Client, config: ServerConfig, metrics: ServerMetrics, num_keys: int) -> Serving:
    tools = None if config.tool_call_parser == "auto" else by_name(config.tool_call_parser).name
    reasoning = None if config.reasoning_parser == "auto" else config.reasoning_parser
    if reasoning is not None:
        reasoning_by_name(reasoning)
    served = Served(
        client=client,
        metrics=metrics,
        tool_call_parser=tools,
        reasoning_parser=reasoning,
    )
    return Serving(
        models=(served,),
        inflight=InFlight(config.send_timeout),
        metrics=metrics,
        started=int(time.time()),
        defaults=Defaults(config.sampling),
        responses=ResponseStores(num_keys),
    )


def _add_routes(app: Starlette, endpoints: Sequence[Endpoint]) -> dict[Any, str]:
    """→ the path of each endpoint. Those under /v1 answer without it too, as llama.cpp's do, for clients whose base URL
    lacks it."""
    taken = {endpoint.path for endpoint in endpoints}
    for endpoint in endpoints:
        short = endpoint.path.removeprefix("/v1")
        for path in (endpoint.path,) if short in taken else (short, endpoint.path):
            app.add_route(path, endpoint.handler, methods=[endpoint.method])
    return {route.endpoint: route.path for route in app.routes if isinstance(route, Route)}
