"""What Prometheus scrapes: counters and histograms of this server, and the engine's gauges read at scrape time.

Owned by the app; written by work.py (what is generated) and context.py (what is answered). Names are vLLM's under the
prefix `octavo:` where vLLM has them. Invariant: an HTTP request that did not succeed is in exactly one of
`request_failures` and `request_aborts`, a choice that ended well in `request_success`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import get_args, get_type_hints

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from octavo import __version__
from octavo.client.base import Client
from octavo.errors import ClientGone
from octavo.types import Metrics, SamplingParams
from octavo.wire.messages import Counters

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_TTFT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_ITL = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_NUMBERS = (1, 2, 5, 10, 20, 50, 100)
_CHECKS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

PROBES = frozenset({"/health", "/live", "/ready", "/metrics", "/v1/metrics"})
"""Asked every few seconds by machines; a 503 of theirs is an answer, not a failure."""
FINISH_REASONS = ("stop", "length", "tool_calls")
USUAL_CODES = (
    "engine_error",
    "queue_full",
    "rate_limit_exceeded",
    "draining",
    "unavailable",
    "context_length_exceeded",
)
"""Failures whose count is shown as 0 before the first one, so that an increase from nothing is seen as one."""

Value = Callable[[Metrics, SamplingParams, float], float | None]
"""Of a prompt whose generation is complete, with its parameters and the seconds it took; None: there is none."""
_PER_REQUEST: tuple[tuple[str, str, Sequence[float], Value], ...] = (
    ("e2e_request_latency_seconds", "Time from request to its last token", _LATENCY, lambda _m, _p, seconds: seconds),
    ("request_queue_time_seconds", "Time a request waited", _LATENCY, lambda m, _p, _s: m.queue_ms / 1e3),
    ("request_prefill_time_seconds", "Time of the prompt", _LATENCY, lambda m, _p, _s: m.prefill_ms / 1e3),
    ("request_decode_time_seconds", "Time of the output", _LATENCY, lambda m, _p, _s: m.decode_ms / 1e3),
    (
        "request_inference_time_seconds",
        "Time of prompt and output",
        _LATENCY,
        lambda m, _p, _s: m.prefill_ms / 1e3 + m.decode_ms / 1e3,
    ),
    (
        "request_time_per_output_token_seconds",
        "Mean time per token after the first",
        _ITL,
        lambda m, _p, _s: m.decode_ms / 1e3 / m.decode_iterations if m.decode_iterations else None,
    ),
    ("request_prompt_tokens", "Prompt tokens per request", _TOKENS, lambda m, _p, _s: m.prompt_tokens),
    ("request_generation_tokens", "Generated tokens per request", _TOKENS, lambda m, _p, _s: m.completion_tokens),
    ("request_params_n", "Choices asked for", _NUMBERS, lambda _m, params, _s: params.n),
    ("request_params_max_tokens", "max_tokens asked for", _TOKENS, lambda _m, params, _s: params.max_tokens),
)
"""Name, meaning, bounds and value of a histogram."""


_COUNTERS = [
    (name, meta)
    for name, hint in get_type_hints(Counters, include_extras=True).items()
    for meta in get_args(hint)
    if isinstance(meta, msgspec.Meta) and meta.title
]
"""Of the engine's counters those that are told, and how."""


def _families(
    kind: type[GaugeMetricFamily | CounterMetricFamily], rows: Iterable[tuple[str, str, float]], model: str
) -> Iterator[Metric]:
    for name, text, value in rows:
        family = kind(f"octavo:{name}", text, labels=["model_name"])
        family.add_metric([model], value)
        yield family


class Tokens(Collector):
    """The tokens of all streams and the time between them, in plain numbers: it is told of every token, and labelled
    metrics of the library take longer for that than all of a token's text."""

    def __init__(self, metrics: ServerMetrics, ttft: Histogram) -> None:
        self.prompt = 0
        self._others = 0
        """Generated tokens beside those that the histogram counts."""
        self._metrics = metrics
        self.ttft = ttft
        self._counts = [0] * (len(_ITL) + 1)
        self._sum = 0.0

    def first(self, seconds: float, tokens: int) -> None:
        """The first of a choice came after `seconds`."""
        self._others += tokens
        self.ttft.labels(self._metrics.model).observe(seconds)

    def observe(self, seconds: float, tokens: int) -> None:
        """More came, `seconds` after those before."""
        if tokens != 1:
            self._others += tokens - 1
            seconds /= tokens
        self._counts[bisect_left(_ITL, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        counters = (
            ("prompt_tokens", "Prompt tokens processed", self.prompt),
            ("generation_tokens", "Tokens generated", self._others + sum(self._counts)),
        )
        yield from _families(CounterMetricFamily, counters, self._metrics.model)
        text = "Time between tokens of a choice"
        family = HistogramMetricFamily("octavo:inter_token_latency_seconds", text, labels=["model_name"])
        names = [*map(str, _ITL), "+Inf"]
        totals = [float(total) for total in accumulate(self._counts)]
        family.add_metric([self._metrics.model], list(zip(names, totals, strict=True)), self._sum)
        yield family


class ServerMetrics(Collector):
    """All series of requests and the engine carry `model_name`. Seconds and tokens."""

    def __init__(self, client: Client) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter and histogram that nobody reads
        self.client = client
        self.registry = CollectorRegistry()
        self.held: list[tuple[str, str, Callable[[], int]]] = []
        """Gauges of what others own: name, meaning, value."""
        label = ["model_name"]

        def histogram(name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = label) -> Histogram:
            return Histogram(f"octavo:{name}", text, labels, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(f"octavo:{name}", text, labels, registry=self.registry)

        self._http = counter("http_requests", "HTTP answers", ["method", "handler", "status"])
        text = "Time from an HTTP request to the end of its answer"
        self._http_time = histogram("http_request_duration_seconds", text, _LATENCY, ["handler"])
        self.finished = counter("request_success", "Choices that ended well, by reason", [*label, "finished_reason"])
        self._failed = counter("request_failures", "HTTP requests that failed, by error code", [*label, "code"])
        self._aborted = counter("request_aborts", "Requests whose client left before the end", label)
        self.tokens = Tokens(
            self, histogram("time_to_first_token_seconds", "Time to the first token of a choice", _TTFT)
        )
        self.registry.register(self.tokens)
        self._per_request = [(histogram(name, text, buckets), value) for name, text, buckets, value in _PER_REQUEST]
        self._checks = counter("grammar_checks", "Constraints checked before a request is taken", [*label, "result"])
        self._check_time = histogram("grammar_check_seconds", "Time of such a check", _CHECKS)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    @property
    def model(self) -> str:
        info = self.client.info
        return info.model if info is not None else ""

    def collect(self) -> Iterator[Metric]:
        """What is read when it is scraped: the engine's numbers, and what the server itself holds."""
        client, model = self.client, self.model
        stats = client.stats
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        gauges = (
            ("num_requests_running", "Requests in the running batch", stats.num_running),
            ("num_requests_waiting", "Requests waiting to be processed", stats.num_waiting),
            ("kv_cache_usage_perc", "Share of KV pages in use; 1 is all", used),
            ("kv_blocks", "KV pages there are", stats.blocks_total),
            ("kv_blocks_used", "KV pages in use", stats.blocks_used),
            ("kv_blocks_cached", "Free KV pages that hold a cached prefix", stats.blocks_cached),
            ("engine_ready", "1 while an engine with a loaded model is attached", int(client.ready)),
            ("grammar_cache_bytes", "Compiled grammars of the engine, followed or kept", stats.grammar_bytes),
            ("grammar_cache_entries", "Compiled grammars that the engine keeps", stats.grammars_kept),
            ("engine_resident_memory_bytes", "Resident memory of the engine process", stats.memory_mb * 2**20),
        )
        counters = [(meta.title or name, meta.description or "", getattr(stats, name)) for name, meta in _COUNTERS]
        counters.append(("engine_restarts", "Engines that replaced an earlier one", client.engine_restarts))
        yield from _families(GaugeMetricFamily, gauges, model)
        yield from _families(CounterMetricFamily, counters, model)
        yield from self._infos(model)
        held = [(name, text, value()) for name, text, value in self.held]
        yield from _families(GaugeMetricFamily, held, model)

    def _infos(self, model: str) -> Iterator[Metric]:
        info = self.client.info
        if info is None:
            return
        pages = {"block_size": str(info.block_size), "num_gpu_blocks": str(info.num_blocks)}  # vLLM's label names
        engine = {
            "version": __version__,
            "device": info.device,
            "dtype": info.dtype,
            "backend": info.backend,
            "max_model_len": str(info.max_model_len),
            "max_num_seqs": str(info.max_num_seqs),
        }
        for name, text, labels in (
            ("cache_config_info", "The KV pages, in the labels; always 1", pages),
            ("engine_info", "The engine, in the labels; always 1", engine),
        ):
            gauge = GaugeMetricFamily(f"octavo:{name}", text, labels=["model_name", *labels])
            gauge.add_metric([model, *labels.values()], 1)
            yield gauge

    def ended(self, metrics: Metrics, params: SamplingParams, seconds: float) -> None:
        """One prompt's generation is complete."""
        for histogram, value in self._per_request:
            if (found := value(metrics, params, seconds)) is not None:
                histogram.labels(self.model).observe(found)

    def checked(self, seconds: float, *, refused: bool) -> None:
        """A request's grammar was checked."""
        self._checks.labels(self.model, "refused" if refused else "ok").inc()
        self._check_time.labels(self.model).observe(seconds)

    def closed(
        self, method: str, handler: str, status: int, seconds: float, code: str | None, *, complete: bool
    ) -> None:
        """One HTTP request is over. `code`: why it failed; `complete`: all that was to be generated for it was."""
        self._http.labels(method, handler, str(status)).inc()
        self._http_time.labels(handler).observe(seconds)
        if code == ClientGone.default_code:
            if not complete:
                self._aborted.labels(self.model).inc()
        elif code is not None and handler not in PROBES:
            self._failed.labels(self.model, code).inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """→ (body, content type): Prometheus' text, or OpenMetrics for those who accept it."""
        self._show_zeros(self.model)
        if "application/openmetrics-text" in accept:
            # Not the library's own choice of encoder, which writes `octavo_` for scrapers that know no UTF-8 names.
            encode: Callable[..., bytes] = openmetrics.generate_latest
            return encode(self.registry, escaping=openmetrics.ALLOWUTF8), openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self.registry), "text/plain; version=0.0.4; charset=utf-8"

    def _show_zeros(self, model: str) -> None:
        for reason in FINISH_REASONS:
            self.finished.labels(model, reason)
        for code in USUAL_CODES:
            self._failed.labels(model, code)
        for result in ("ok", "refused"):
            self._checks.labels(model, result)
        for metric in (self._aborted, self.tokens.ttft, self._check_time, *(each for each, _ in self._per_request)):
            metric.labels(model)
