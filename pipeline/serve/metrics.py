"""What a server reports to Prometheus, in its text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as as_text
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.serve.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_COUNTS = {
    "tokens": "Generated tokens.",
    "prompt_tokens": "Tokens of prompts.",
    "steps": "Decoding steps.",
    "cancelled": "Answers whose client went away, or whose time was over.",
    "failed": "Answers that failed in the model.",
}


class Metrics:
    """The metrics of one server.

    Args:
        engine: of the server.

    Attributes:
        requests: chat completions, by model and status.
        seconds: from the request to the end of its answer.
        first_token: from the request to the first token of its answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineState(engine))
        self.requests = Counter(
            "mmloom_requests",
            "Chat completions.",
            ["model", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "mmloom_request_seconds",
            "From a request to the end of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "mmloom_first_token_seconds",
            "From a request to the first text of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return as_text(self._registry)


class _EngineState(Collector):
    """Reads the engine's counts when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        for name, text in _COUNTS.items():
            yield CounterMetricFamily(f"mmloom_{name}", text, value=engine.counts[name])
        for name, text, value in (
            ("running", "Answers that are being decoded.", engine.running),
            ("waiting", "Answers that wait for a place.", engine.waiting),
            ("cached_positions", "Tokens in the cache.", engine.cached_positions),
        ):
            yield GaugeMetricFamily(f"mmloom_{name}", text, value=value)
