"""What Prometheus scrapes: counters and histograms of this server, and the engine's gauges read at scrape time.

Owned by the app; written by server/work.py and the middleware. Names are vLLM's under the prefix `octavo:`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from octavo.client.base import Client
from octavo.types import Metrics

_LATENCY = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_TTFT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_ITL = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class _EngineCollector(Collector):
    """Reads `client.stats` when scraped. Counters start again with the engine, as Prometheus expects of a restart."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        client, model = self._metrics.client, self._metrics.model
        stats = client.stats
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        gauges = (
            ("num_requests_running", "Requests in the running batch", stats.num_running),
            ("num_requests_waiting", "Requests waiting to be processed", stats.num_waiting),
            ("kv_cache_usage_perc", "Share of KV pages in use; 1 is all", used),
            ("kv_blocks_total", "KV pages there are", stats.blocks_total),
            ("kv_blocks_used", "KV pages in use", stats.blocks_used),
            ("kv_blocks_cached", "Free KV pages that hold a cached prefix", stats.blocks_cached),
            ("engine_ready", "1 while an engine with a loaded model is attached", int(client.ready)),
            ("engine_memory_mb", "Resident memory of the engine process", stats.memory_mb),
        )
        counters = (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
            ("num_preemptions", "Requests preempted", stats.preemptions),
            ("engine_aborts", "Requests the engine aborted", stats.aborts),
            ("engine_steps", "Steps the engine has run", stats.steps),
            ("engine_restarts", "Engines that replaced an earlier one", client.engine_restarts),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"octavo:{name}", text, labels=["model_name"])
            gauge.add_metric([model], value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(f"octavo:{name}", text, labels=["model_name"])
            counter.add_metric([model], value)
            yield counter


class Gaps(Collector):
    """The histogram of the time between tokens, in plain numbers: it is told of every token of every stream, and a
    labelled histogram of the library takes longer for that than all of a token's text."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._counts = [0] * (len(_ITL) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_ITL, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        text = "Time between tokens of a choice"
        family = HistogramMetricFamily("octavo:inter_token_latency_seconds", text, labels=["model_name"])
        if any(self._counts):
            names = [*map(str, _ITL), "+Inf"]
            totals = [float(total) for total in accumulate(self._counts)]
            family.add_metric([self._metrics.model], list(zip(names, totals, strict=True)), self._sum)
        yield family


class ServerMetrics:
    """All series carry `model_name`. Seconds and tokens."""

    def __init__(self, client: Client) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter and histogram that nobody reads
        self.client = client
        self.registry = CollectorRegistry()
        label = ["model_name"]

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"octavo:{name}", text, label, buckets=buckets, registry=self.registry)

        self.http = Counter(
            "octavo:http_requests", "HTTP answers", ["method", "handler", "status"], registry=self.registry
        )
        self.finished = Counter(
            "octavo:request_success", "Finished choices by reason", [*label, "finished_reason"], registry=self.registry
        )
        self.failed = Counter(
            "octavo:request_failures", "Requests that failed, by error code", [*label, "code"], registry=self.registry
        )
        self.aborted = Counter("octavo:request_aborts", "Requests whose client left", label, registry=self.registry)
        self.prompt_tokens = Counter("octavo:prompt_tokens", "Prompt tokens processed", label, registry=self.registry)
        self.generated = Counter("octavo:generation_tokens", "Tokens generated", label, registry=self.registry)
        self.ttft = histogram("time_to_first_token_seconds", "Time to the first token", _TTFT)
        self.gaps = Gaps(self)
        self.e2e = histogram("e2e_request_latency_seconds", "Time from request to its last token", _LATENCY)
        self.queue_time = histogram("request_queue_time_seconds", "Time a request waited", _LATENCY)
        self.prefill_time = histogram("request_prefill_time_seconds", "Time of the prompt", _LATENCY)
        self.decode_time = histogram("request_decode_time_seconds", "Time of the output", _LATENCY)
        self.request_prompt = histogram("request_prompt_tokens", "Prompt tokens per request", _TOKENS)
        self.request_generated = histogram("request_generation_tokens", "Generated tokens per request", _TOKENS)
        self.registry.register(_EngineCollector(self))
        self.registry.register(self.gaps)
        ProcessCollector(registry=self.registry)

    @property
    def model(self) -> str:
        info = self.client.info
        return info.model if info is not None else ""

    def ended(self, metrics: Metrics, seconds: float) -> None:
        """One prompt's generation is complete."""
        model = self.model
        self.prompt_tokens.labels(model).inc(metrics.prompt_tokens)
        self.generated.labels(model).inc(metrics.completion_tokens)
        self.e2e.labels(model).observe(seconds)
        self.queue_time.labels(model).observe(metrics.queue_ms / 1000)
        self.prefill_time.labels(model).observe(metrics.prefill_ms / 1000)
        self.decode_time.labels(model).observe(metrics.decode_ms / 1000)
        self.request_prompt.labels(model).observe(metrics.prompt_tokens)
        self.request_generated.labels(model).observe(metrics.completion_tokens)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
