"""Prometheus metrics of the server; metrics that TF Serving has too have the same names."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tfllmrec.client.status import Code

if TYPE_CHECKING:
    from tfllmrec.feedback.event_writer import Commit
    from tfllmrec.server.lists import Lists

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Microseconds, 10 * 1.8^n, as in TF Serving.
LATENCY_BUCKETS = [10 * 1.8**n for n in range(33)]
BATCH_BUCKETS = [2**n for n in range(11)]
WRITE_BUCKETS = [0.0001 * 2**n for n in range(18)]
ANSWER_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
LENGTH_BUCKETS = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
#: Number of most recently used versions, of all models, whose series are kept; the series of served versions are always
#: kept. Number of kinds of events that have their own series (the first ones); other kinds are counted under *other*.
MOST_VERSIONS, MOST_KINDS = 8, 20
_OF_VERSION = ["model_name", "version"]
_OF_LIST = [*_OF_VERSION, "signature"]

disable_created_metrics()  # they would double the number of series


class _RequestCount(Collector):
    """A counter whose name does not end in ``_total``, because dashboards expect TF Serving's name."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def collect(self) -> Iterator[Metric]:
        metric = Metric(":tensorflow:serving:request_count", "The total number of requests.", "unknown")
        for (model, status), count in sorted(self.counts.items()):
            metric.add_sample(metric.name, {"model_name": model, "status": status}, count)
        yield metric


class _Versions(Collector):
    """The available versions, and their labels."""

    def __init__(self, serving: Callable[[], Iterable[tuple[str, int, list[str]]]]) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        answers = Metric("tfllmrec_version_available", "1 for each version that answers.", "gauge")
        labels = Metric("tfllmrec_version_label", "1 for each label of a version that answers.", "gauge")
        for model, number, names in self._serving():
            of_version = {"model_name": model, "version": str(number)}
            answers.add_sample(answers.name, of_version, 1)
            for name in names:
                labels.add_sample(labels.name, {**of_version, "label": name}, 1)
        yield answers
        yield labels


class Metrics:
    """Counts and latencies of one server.

    Args:
      waiting: Returns the number of requests that wait for a worker.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._by_version: list[Any] = []
        self._known_versions: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._serving: Callable[[], Iterable[tuple[str, int, list[str]]]] = tuple
        self._using = threading.Lock()
        self._kinds: set[str] = set()
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
        for outcome in ("accepted", "duplicate", "refused"):
            self._events.labels(outcome)  # creates the series at 0, so that the first event counts as an increase
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
        for outcome in ("logged", "dropped"):
            self._shown.labels(outcome)
        self._write_seconds = Histogram(
            "tfllmrec_event_write_seconds",
            "How long a durable write of the event log took, which several requests may share.",
            buckets=WRITE_BUCKETS,
            registry=self._registry,
        )
        self._write_failures = PrometheusCounter(
            "tfllmrec_event_write_failures", "Writes of the event log that failed.", registry=self._registry
        )
        self._event_requests = PrometheusCounter(
            "tfllmrec_event_requests", "Requests that send events.", ["status"], registry=self._registry
        )
        self._by_kind = PrometheusCounter(
            "tfllmrec_events_by_kind", "Valid events, duplicates included.", ["kind"], registry=self._registry
        )
        self._last_event: Gauge | None = None
        self._last_list: Gauge | None = None
        self._answer_seconds = self._versioned(
            Histogram, "tfllmrec_answer_seconds", "How long answers took, waiting included.", _OF_LIST, ANSWER_BUCKETS
        )
        self._list_items = self._versioned(
            Histogram, "tfllmrec_list_items", "Items of a list.", _OF_LIST, LENGTH_BUCKETS
        )
        self._history = self._versioned(
            Histogram, "tfllmrec_history_ids", "Ids of the history of a list.", _OF_LIST, LENGTH_BUCKETS
        )
        self._empty = self._versioned(PrometheusCounter, "tfllmrec_empty_lists", "Lists without an item.", _OF_LIST)
        self._without_history = self._versioned(
            PrometheusCounter, "tfllmrec_lists_without_history", "Lists for an empty history.", _OF_LIST
        )
        self._unknown = self._versioned(
            PrometheusCounter, "tfllmrec_unknown_ids", "Ids that the model does not know.", _OF_LIST
        )
        self._listed = self._versioned(
            PrometheusCounter, "tfllmrec_listed_items", "Items of lists, by stratum.", [*_OF_LIST, "stratum"]
        )
        self._logged = self._versioned(
            PrometheusCounter, "tfllmrec_logged_items", "Shown items that were logged.", [*_OF_VERSION, "policy"]
        )
        self._explored = self._versioned(
            PrometheusCounter, "tfllmrec_explored_items", "Tail items that exploration listed.", _OF_VERSION
        )
        self._exploration_loss = self._versioned(
            PrometheusCounter,
            "tfllmrec_exploration_loss",
            "Expected loss of all lists by exploration, in the unit of the scores.",
            _OF_VERSION,
        )
        self._used = self._versioned(
            PrometheusCounter,
            "tfllmrec_used_items",
            "Logged items that a click or a stronger event with their request_id followed, each once.",
            [*_OF_VERSION, "policy"],
        )

    def _versioned(
        self, kind: Any, name: str, help: str, labels: list[str], buckets: list[float] | list[int] | None = None
    ) -> Any:
        """Creates a metric whose series are dropped for versions that are no longer used."""
        more = {} if buckets is None else {"buckets": buckets}
        made = kind(name, help, labels, registry=self._registry, **more)
        self._by_version.append(made)
        return made

    def _touch(self, model: str, version: str) -> bool:
        """Records that a version is used, and returns whether it is new."""
        known = self._known_versions
        with self._using:
            new = (model, version) not in known
            known[model, version] = None
            known.move_to_end((model, version))
        return new

    def _drop_old(self, *using: tuple[str, str]) -> None:
        """Drops the series of the least recently used versions that are no longer served."""
        known = self._known_versions
        serving = {*using, *((model, str(number)) for model, number, _ in self._serving())}
        with self._using:
            old = [each for each in known if each not in serving][: max(len(known) - MOST_VERSIONS, 0)]
            for each in old:
                del known[each]
        for old_model, old_version in old:
            for metric in self._by_version:
                metric.remove_by_labels({"model_name": old_model, "version": old_version})

    def versions(self, serving: Callable[[], Iterable[tuple[str, int, list[str]]]]) -> None:
        """Adds metrics of the available versions; ``serving`` returns the model, number and labels of each."""
        self._serving = serving
        self._registry.register(_Versions(serving))

    def log(self, log_bytes: Callable[[], int]) -> None:
        """Adds metrics of the event log: its size, which ``log_bytes`` returns, and the times of the last writes."""
        size = Gauge("tfllmrec_event_log_bytes", "Size of the event log.", registry=self._registry)
        size.set_function(log_bytes)
        self._last_event, self._last_list = (
            Gauge(f"tfllmrec_last_{what}_timestamp_seconds", f"{when}, since 1970.", registry=self._registry)
            for what, when in (
                ("event", "When this server accepted its last event, or opened its log"),
                ("list", "When this server logged its last list"),
            )
        )
        self._last_event.set(time.time())  # so that an alert notices a server that never receives an event

    def answer(self, model: str, version: int, signature: str, seconds: float) -> None:
        """Counts an answer of a version; must be called in the thread that loads and unloads versions."""
        if self._touch(model, str(version)):
            self._drop_old((model, str(version)))
        self._answer_seconds.labels(model, str(version), signature).observe(seconds)

    def lists(self, model: str, version: int, signature: str, lists: Lists) -> None:
        """Counts the lists of an answer."""
        of_list = (model, str(version), signature)
        items = self._list_items.labels(*of_list)
        for listed in lists.listed.tolist():
            items.observe(listed)
        if lists.history_ids is not None:
            history = self._history.labels(*of_list)
            for ids in lists.history_ids.tolist():
                history.observe(ids)
            self._without_history.labels(*of_list).inc(int((lists.history_ids == 0).sum()))
        self._empty.labels(*of_list).inc(int((lists.listed == 0).sum()))
        self._unknown.labels(*of_list).inc(int(lists.unknown_ids.sum()))
        for stratum, count in lists.strata.items():
            self._listed.labels(*of_list, stratum).inc(count)

    def explored(self, model: str, version: int, items: int, loss: float) -> None:
        """Counts the effect of exploration on an answer, see :class:`tfllmrec.server.exploring.Explored`."""
        self._touch(model, str(version))
        self._explored.labels(model, str(version)).inc(items)
        self._exploration_loss.labels(model, str(version)).inc(loss)

    def event_request(self, code: Code) -> None:
        """Counts a request that sent events, by its status."""
        self._event_requests.labels(code.name).inc()

    def request(self, model: str | None, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Counts a request by its status, and the latency of a successful one.

        Args:
          model: The name of the model. ``None`` if there is no such model, because clients could invent any number of
            names, which would take memory.
          api: The protocol.
          entrypoint: The method.
          code: The status.
          seconds: The latency.
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

    def commit(self, commit: Commit, used: Mapping[tuple[str, str, str], int]) -> None:
        """Counts a durable write of the event log.

        Args:
          commit: The write.
          used: The number of logged items to which its events belong, by model, version and policy.
        """
        self._shown.labels("logged").inc(commit.shown)
        self._shown.labels("dropped").inc(commit.dropped)
        if commit.failed:
            self._write_failures.inc()
            return
        self._write_seconds.observe(commit.seconds)
        logged = Counter((shown.model, str(shown.version), shown.policy) for shown in commit.exposures)
        for metric, counts in ((self._logged, logged), (self._used, used)):
            for (model, version, policy), count in counts.items():
                self._touch(model, version)
                metric.labels(model, version, policy).inc(count)
        for batch in commit.batches:
            for kind, count in Counter(row.kind or "none" for row in batch.rows).items():
                self._by_kind.labels(self._kind(kind)).inc(count)
        if self._last_list is not None and commit.shown:
            self._last_list.set(time.time())
        if self._last_event is not None and any(receipt.accepted for receipt in commit.receipts):
            self._last_event.set(time.time())
        for receipt in commit.receipts:
            self._events.labels("accepted").inc(receipt.accepted)
            self._events.labels("duplicate").inc(receipt.duplicates)
            self._events.labels("refused").inc(len(receipt.refused))
            self._late.inc(receipt.late)
            self._skewed.inc(receipt.skewed)

    def _kind(self, kind: str) -> str:
        """Returns the kind if it is one of the first :data:`MOST_KINDS` kinds, otherwise *other*."""
        if len(self._kinds) < MOST_KINDS:
            self._kinds.add(kind)
        return kind if kind in self._kinds else "other"

    def dropped(self, items: int) -> None:
        """Counts shown items that were not logged because the queue of the event log was full."""
        self._shown.labels("dropped").inc(items)

    def page(self) -> bytes:
        return generate_latest(self._registry)
