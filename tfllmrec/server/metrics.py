"""Prometheus metrics of the server, under TF Serving's names where TF Serving has such a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tfllmrec.client.status import Code

if TYPE_CHECKING:
    from tfllmrec.feedback.event_writer import Commit

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Microseconds, 10 * 1.8^n, as in TF Serving.
LATENCY_BUCKETS = [10 * 1.8**n for n in range(33)]
BATCH_BUCKETS = [2**n for n in range(11)]
WRITE_BUCKETS = [0.0001 * 2**n for n in range(18)]

disable_created_metrics()  # they would double the number of series


class _RequestCount(Collector):
    """A counter whose name does not end in ``_total``: TF Serving's name, which dashboards expect."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def collect(self) -> Iterator[Metric]:
        metric = Metric(":tensorflow:serving:request_count", "The total number of requests.", "unknown")
        for (model, status), count in sorted(self.counts.items()):
            metric.add_sample(metric.name, {"model_name": model, "status": status}, count)
        yield metric


class Metrics:
    """Counts and latencies of one server."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = _RequestCount()
        self._registry.register(self._requests)
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request by model.",
            ["model_name", "API", "entrypoint"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "tfllmrec_batch_requests",
            "Requests that were answered by one call of a model.",
            buckets=BATCH_BUCKETS,
            registry=self._registry,
        )
        self._loads = PrometheusCounter(
            "tfllmrec_version_loads", "Tries to load a version.", ["model_name", "outcome"], registry=self._registry
        )
        self._load_seconds = Gauge(
            "tfllmrec_version_load_seconds",
            "How long the last version took to load.",
            ["model_name"],
            registry=self._registry,
        )
        queue = Gauge("tfllmrec_queue_requests", "Requests that wait for a worker.", registry=self._registry)
        queue.set_function(waiting)
        self._events = PrometheusCounter(
            "tfllmrec_events", "Events that clients sent, by what became of them.", ["outcome"], registry=self._registry
        )
        self._late = PrometheusCounter(
            "tfllmrec_events_late", "Events that came over an hour after they happened.", registry=self._registry
        )
        self._skewed = PrometheusCounter(
            "tfllmrec_events_skewed", "Events whose clock was over five minutes ahead.", registry=self._registry
        )
        self._shown = PrometheusCounter(
            "tfllmrec_shown_items",
            "Recommended items: in the event log, or dropped.",
            ["outcome"],
            registry=self._registry,
        )
        self._write_seconds = Histogram(
            "tfllmrec_event_write_seconds",
            "How long a durable write of the event log took, which several requests may share.",
            buckets=WRITE_BUCKETS,
            registry=self._registry,
        )
        self._write_failures = PrometheusCounter(
            "tfllmrec_event_write_failures", "Writes of the event log that failed.", registry=self._registry
        )

    def request(self, model: str | None, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Counts a request, however it ended.

        Args:
          model: ``None`` if no such model is served. Its name would be a client's invention, and take memory.
        """
        self._requests.counts[model or "", code.name] += 1
        if code is Code.OK and model is not None:
            self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def batch(self, requests: int) -> None:
        self._batch.observe(requests)

    def load(self, model: str, loaded: bool, seconds: float) -> None:
        self._loads.labels(model, "loaded" if loaded else "failed").inc()
        if loaded:
            self._load_seconds.labels(model).set(seconds)

    def commit(self, commit: Commit) -> None:
        """Counts a durable write of the event log."""
        self._shown.labels("logged").inc(commit.shown)
        self._shown.labels("dropped").inc(commit.dropped)
        if commit.failed:
            self._write_failures.inc()
            return
        self._write_seconds.observe(commit.seconds)
        for receipt in commit.receipts:
            self._events.labels("accepted").inc(receipt.accepted)
            self._events.labels("duplicate").inc(receipt.duplicates)
            self._events.labels("refused").inc(len(receipt.refused))
            self._late.inc(receipt.late)
            self._skewed.inc(receipt.skewed)

    def dropped(self, items: int) -> None:
        """Counts shown items that found no room in the queue of the event log."""
        self._shown.labels("dropped").inc(items)

    def page(self) -> bytes:
        return generate_latest(self._registry)
