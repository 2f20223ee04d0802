"""OpenTelemetry traces (`--otlp-endpoint`): one span for each generating request, made when the request is over.

Made by app.py, told by context.py. Attributes follow the gen_ai conventions; latencies have vLLM's names. Invariant:
nothing here waits, or fails a request: spans go into a bounded queue that a thread of the library's sends, and what
cannot be sent is dropped. The library is an extra, imported only when the option is given; its own settings (headers,
sampling, resource) come from its OTEL_* environment.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from octavo import __version__
from octavo.errors import ConfigError
from octavo.server.core.account import Account

logger = logging.getLogger("octavo.server")

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}
"""Routes that generate, and what the conventions call it."""
SEND_TIMEOUT_S = 5.0
FLUSH_S = 3.0
"""How long the end of the server may wait for the last spans."""
COMPLAIN_EVERY_S = 60.0
_SENT = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "max_tokens", "seed")


class Tracing:
    """Raises ConfigError when the endpoint is no URL or the library is not installed."""

    def __init__(self, endpoint: str) -> None:
        url = traces_url(endpoint)
        if not installed():
            raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'octavo[otel]'")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a line for every try; ours come once a minute

        class Exporter(SpanExporter):
            """Says now and then that the collector takes nothing."""

            def __init__(self) -> None:
                self._exporter: Any = OTLPSpanExporter(endpoint=url, timeout=SEND_TIMEOUT_S)
                self._quiet_until = 0.0

            def export(self, spans: Sequence[Any]) -> SpanExportResult:
                result: SpanExportResult = self._exporter.export(spans)
                if result is not SpanExportResult.SUCCESS and time.monotonic() >= self._quiet_until:
                    self._quiet_until = time.monotonic() + COMPLAIN_EVERY_S
                    logger.warning("--otlp-endpoint: the collector does not take traces; they are dropped")
                return result

            def shutdown(self) -> None:
                self._exporter.shutdown()

        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins over these.
        ours = Resource({"service.name": "octavo", "service.version": __version__})
        named = Resource.create()
        if str(named.attributes.get("service.name", "")).startswith("unknown_service"):
            named = named.merge(ours)
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(Exporter()))
        self._tracer = self._provider.get_tracer("octavo", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, account: Account, route: str, headers: Mapping[str, str]) -> str | None:
        """Makes the span of a request that is over; → its trace id. None where the route generates nothing."""
        operation = OPERATIONS.get(route)
        if operation is None:
            return None
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name: value for name in ("traceparent", "tracestate") if (value := headers.get(name))}
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {account.model}".rstrip(),
            context=self._propagator.extract(carrier) if carrier else None,
            kind=SpanKind.SERVER,
            start_time=end - int(account.seconds * 1e9),
            attributes=attributes(account, operation, route),
        )
        if account.error is not None and account.error.status >= 500:
            span.set_status(Status(StatusCode.ERROR, account.code))
        span.end(end)
        return f"{span.get_span_context().trace_id:032x}"

    async def close(self) -> None:
        """Sends what is left, as far as that goes in a moment."""
        thread = threading.Thread(target=self._provider.shutdown, name="octavo-traces", daemon=True)
        thread.start()
        until = time.monotonic() + FLUSH_S
        while thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)


def installed() -> bool:
    try:
        return all(
            importlib.util.find_spec(name) is not None
            for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
        )
    except ModuleNotFoundError:
        return False


def traces_url(endpoint: str) -> str:
    """The address that traces are sent to: as given, or the usual path of a collector. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"--otlp-endpoint {endpoint}: give the address of a collector, as http://localhost:4318")
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"


def attributes(account: Account, operation: str, route: str) -> dict[str, Any]:
    """No text of the request or the answer is among them."""
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.id": account.request_id,
        "gen_ai.latency.e2e": account.seconds,
        "http.route": route,
        "http.response.status_code": account.status,
    }
    if account.model:
        found["gen_ai.request.model"] = found["gen_ai.response.model"] = account.model
    if account.params is not None:
        found["gen_ai.request.n"] = account.params.n
        for name in _SENT:
            if value := getattr(account.params, name):
                found[f"gen_ai.request.{name}"] = value
    if account.metrics:
        each = account.metrics
        queue, prefill, decode = (
            max(getattr(m, name) for m in each) / 1e3 for name in ("queue_ms", "prefill_ms", "decode_ms")
        )
        found |= {
            "gen_ai.usage.input_tokens": account.prompt_tokens,
            "gen_ai.usage.output_tokens": account.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": account.cached_tokens,
            "gen_ai.latency.time_in_queue": queue,
            "gen_ai.latency.time_to_first_token": min(m.time_to_first_token_ms for m in each) / 1e3,
            "gen_ai.latency.time_in_model_prefill": prefill,
            "gen_ai.latency.time_in_model_decode": decode,
            "gen_ai.latency.time_in_model_inference": prefill + decode,
        }
    if account.finish_reasons:
        found["gen_ai.response.finish_reasons"] = account.finish_reasons
    if account.code is not None:
        found["error.type"] = account.code
    return found
