"""Health, readiness and metrics: what operators and their tools ask. Nothing here touches the engine's work."""

from __future__ import annotations

import time

import msgspec
import psutil
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import Unavailable
from octavo.server.core.machine import Gpu
from octavo.server.core.serving import Serving
from octavo.server.faces.openai.errors import ErrorInfo
from octavo.server.http.call import json_response, serving

MIB = 1 << 20
REFRESH_S = 0.2
"""How long an answer waits for an engine amid a step; then it shows what the last heartbeat told."""


class Health(msgspec.Struct, kw_only=True):
    status: str = "healthy"
    service: str = "octavo"


class Live(msgspec.Struct, kw_only=True):
    status: str = "alive"


class Ready(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`error` beside status 503 only."""

    status: str
    model_loaded: bool
    error: ErrorInfo | None = None


class Cpu(msgspec.Struct, kw_only=True):
    utilization_percent: float
    core_count: int


class Memory(msgspec.Struct, kw_only=True):
    used_mb: float
    total_mb: float
    available_mb: float


class Kv(msgspec.Struct, kw_only=True):
    blocks_total: int
    blocks_used: int
    blocks_cached: int
    fragmentation: float


class Queue(msgspec.Struct, kw_only=True):
    waiting: int
    running: int


class SystemMetrics(msgspec.Struct, kw_only=True):
    """GET /v1/metrics. `gpu` is null where the engine does not run on one; `timestamp` in Unix seconds."""

    cpu: Cpu
    memory: Memory
    gpu: Gpu | None
    kv: Kv
    queue: Queue
    timestamp: float


async def health(_request: Request) -> Response:
    return json_response(Health())


async def live(_request: Request) -> Response:
    return json_response(Live())


async def ready(request: Request) -> Response:
    serve = serving(request)
    try:
        serve.inflight.refuse_when_draining()
        if not serve.models[0].client.ready:
            raise Unavailable("the model is loading; try again shortly", code="loading", retry_after=2)
    except Unavailable as error:
        info = ErrorInfo(message=error.message, type=error.type, param=None, code=error.code)
        body = Ready(status=error.code or "unavailable", model_loaded=serve.models[0].client.ready, error=info)
        headers = {"retry-after": str(error.retry_after)}
        return Response(msgspec.json.encode(body), error.status, headers, "application/json")
    return json_response(Ready(status="ready", model_loaded=True))


async def system_metrics(request: Request) -> Response:
    serve = serving(request)
    await serve.models[0].client.refresh(REFRESH_S)
    return json_response(measured(serve))


def measured(serve: Serving) -> SystemMetrics:
    """The machine and the engine now."""
    memory, stats, info = psutil.virtual_memory(), serve.models[0].client.stats, serve.models[0].client.info
    return SystemMetrics(
        cpu=Cpu(utilization_percent=serve.machine.cpu_percent(), core_count=psutil.cpu_count() or 1),
        memory=Memory(
            used_mb=round(memory.used / MIB, 1),
            total_mb=round(memory.total / MIB, 1),
            available_mb=round(memory.available / MIB, 1),
        ),
        gpu=None if info is None else serve.machine.gpu(info.device),
        kv=Kv(
            blocks_total=stats.blocks_total,
            blocks_used=stats.blocks_used,
            blocks_cached=stats.blocks_cached,
            fragmentation=stats.fragmentation,
        ),
        queue=Queue(waiting=stats.num_waiting, running=stats.num_running),
        timestamp=time.time(),
    )


async def prometheus(request: Request) -> Response:
    serve = serving(request)
    await serve.models[0].client.refresh(REFRESH_S)
    body, content_type = serve.metrics.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
