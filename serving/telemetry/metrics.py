"""Counts for Prometheus. A task has series of its own only while there are few of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest, start_http_server
from prometheus_client.registry import Collector

from ..first_use import TaskSource
from ..tasks.contract import Duration, Statistics, TaskEngine
from .request_record import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
"""Label of every task beyond the bound, and of those that are not served."""
NO_TASK = ""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_NS = 1e-9
_SCRAPE_S = 10.0
"""How long a scraper may be silent."""


class TaskLabels:
    """Bounds the series: names of tasks that are served, and at most so many of them.

    Args:
        known: Names of the tasks that are served.
        most: How many get a label of their own, in the order in which they are first asked for.
    """

    def __init__(self, known: Callable[[], Iterable[str]], most: int) -> None:
        self._known, self._most = known, most
        self._own: set[str] = set()
        self._lock = threading.Lock()

    def label(self, task: str) -> str:
        """The label of a task."""
        if not task or task in self._own:
            return task
        with self._lock:
            if len(self._own) < self._most and task in self._known():
                self._own.add(task)
                return task
        return task if task in self._own else OTHER


class Metrics:
    """All counts of one server, in a registry of their own.

    Args:
        engine: Asked for its counts at every scrape.
        max_tasks: Tasks with series of their own.
        version: Of this program.
        source: What fills the store; nothing does if None.
    """

    def __init__(
        self,
        engine: TaskEngine,
        *,
        max_tasks: int,
        version: str,
        source: TaskSource | None = None,
    ) -> None:
        self.labels = TaskLabels(engine.tasks, max_tasks)
        registry = self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "glora_requests",
            "Requests that ended.",
            ("protocol", "method", "task", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "glora_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ("protocol", "method", "task"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter("glora_images", "Images answered.", ("task",), registry=registry)
        self._steps = Histogram(
            "glora_step_duration_seconds",
            "Parts of a request that inferred: decode, queue, swap, compute.",
            ("step", "task"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            "glora_batch_size_images",
            "Images in the batch that a request was part of.",
            ("task",),
            buckets=_SIZES,
            registry=registry,
        )
        self._bytes_in = Counter(
            "glora_received_bytes", "Bodies of requests.", ("protocol",), registry=registry
        )
        self._bytes_out = Counter(
            "glora_sent_bytes", "Bodies of answers.", ("protocol",), registry=registry
        )
        self._open = Gauge(
            "glora_open_requests",
            "Requests that have come and not ended.",
            ("protocol",),
            registry=registry,
        )
        registry.register(_EngineCounts(engine, self.labels, version))
        if source is not None:
            registry.register(_SourceCounts(source))

    def started(self, protocol: str) -> None:
        """Count a request that has come."""
        self._open.labels(protocol).inc()

    def finished(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        task = self.labels.label(record.task)
        self._open.labels(record.protocol).dec()
        self._requests.labels(record.protocol, record.method, task, record.status).inc()
        self._seconds.labels(record.protocol, record.method, task).observe(record.duration_s)
        self._bytes_in.labels(record.protocol).inc(record.bytes_in)
        self._bytes_out.labels(record.protocol).inc(record.bytes_out)
        for step in record.steps:
            seconds = (step.end_ns - step.start_ns) * _NS
            self._steps.labels(step.name, task).observe(seconds)
        if record.batch_size:
            self._images.labels(task).inc(record.n_images)
            self._batch.labels(task).observe(record.batch_size)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer scrapes at a port of their own, in a thread of their own.

        Returns:
            What ends it.

        Raises:
            OSError: If the port is in use.
        """
        server, thread = start_http_server(port, host, self._registry)
        # Or who asks nothing would hold a thread for ever.
        server.RequestHandlerClass.timeout = _SCRAPE_S  # type: ignore[attr-defined]

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end


class _Counted(NamedTuple):
    """A count of the engine by task."""

    name: str
    what: str
    value: Callable[[Statistics], float]


def _seconds(duration: Duration) -> float:
    return duration.ns * _NS


_BY_TASK = (
    _Counted("glora_engine_images", "Images computed.", lambda s: s.inference_count),
    _Counted("glora_engine_batches", "Batches computed.", lambda s: s.execution_count),
    _Counted(
        "glora_engine_compute_seconds", "Computing batches.", lambda s: _seconds(s.compute_infer)
    ),
    _Counted("glora_engine_queue_seconds", "Waiting for a batch.", lambda s: _seconds(s.queue)),
    _Counted(
        "glora_weights_cache_hits",
        "Batches whose merged weights were in memory.",
        lambda s: s.cache_hit.count,
    ),
    _Counted(
        "glora_weights_cache_misses",
        "Batches that waited for a merge.",
        lambda s: s.cache_miss.count,
    ),
    _Counted("glora_rejected_requests", "Queue full, or too late.", lambda s: s.rejected),
    _Counted("glora_cancelled_requests", "The client went.", lambda s: s.cancelled),
    _Counted("glora_failed_requests", "All that failed in the engine.", lambda s: s.fail.count),
)


class _EngineCounts(Collector):
    """What the engine counts itself, read at every scrape."""

    def __init__(self, engine: TaskEngine, labels: TaskLabels, version: str) -> None:
        self._engine, self._labels, self._version = engine, labels, version

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        engine, usage = self._engine, self._engine.usage()
        info = InfoMetricFamily("glora_build", "Of this server.")
        info.add_metric((), {"version": self._version})
        yield info
        yield GaugeMetricFamily("glora_ready", "Whether requests are taken.", int(engine.ready))
        yield GaugeMetricFamily("glora_tasks", "Tasks that are served.", len(engine.tasks()))
        for name, what, value in (
            ("glora_queued_images", "Images admitted and not yet computed.", usage.queued),
            ("glora_in_flight_requests", "Requests admitted, not answered.", usage.in_flight),
            ("glora_weights_bytes", "Merged weights in memory.", usage.weights_bytes),
            ("glora_weights_budget_bytes", "Most that they may take.", usage.budget_bytes),
            ("glora_backbone_bytes", "Backbones in memory.", usage.backbone_bytes),
        ):
            yield GaugeMetricFamily(name, what, value)
        for name, what, total in (
            ("glora_swaps", "Merges since the start.", usage.swaps),
            ("glora_merge_seconds", "Time spent merging.", usage.merge_ns * _NS),
            ("glora_weights_evictions", "Merged weights let go for others.", usage.evictions),
        ):
            yield CounterMetricFamily(name, what, total)
        yield from self._by_task()

    def _by_task(self) -> Iterator[Metric]:
        statistics = self._engine.statistics()
        for counted in _BY_TASK:
            sums: dict[str, float] = {}
            for each in statistics:
                value = counted.value(each)
                # A task that was never asked for needs no series, and takes none of the few.
                if value:
                    label = self._labels.label(each.task)
                    sums[label] = sums.get(label, 0) + value
            family = CounterMetricFamily(counted.name, counted.what, labels=("task",))
            for label, total in sums.items():
                family.add_metric((label,), total)
            yield family


class _SourceCounts(Collector):
    """How it stands with what fills the store, read at every scrape."""

    def __init__(self, source: TaskSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        source = self._source
        up = int(not source.is_away)
        yield GaugeMetricFamily("glora_origin_up", "Whether it answered when last asked.", up)
        if source.answered_s is not None:
            age_s = time.monotonic() - source.answered_s
            yield GaugeMetricFamily(
                "glora_origin_answered_age_seconds", "Since it last answered.", age_s
            )
        offered = len(source.offered())
        yield GaugeMetricFamily("glora_origin_tasks", "Tasks that it has.", offered)
        for name, what, value in (
            ("glora_cache_bytes", "Of versions and backbones fetched.", source.cache_bytes),
            ("glora_cache_budget_bytes", "Most that they may take.", source.budget_bytes),
        ):
            yield GaugeMetricFamily(name, what, value)
        for name, what, total in (
            ("glora_origin_fetches", "Versions fetched since the start.", source.n_fetched),
            ("glora_origin_failed_fetches", "Versions that could not be.", source.n_failed),
        ):
            yield CounterMetricFamily(name, what, total)
