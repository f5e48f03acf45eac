"""A real engine, tiny: a linear map for each version, computed in a thread of its own."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.serving.errors import (
    DeadlineError,
    InputError,
    LoadError,
    OverloadedError,
    UnavailableError,
    UnknownTaskError,
)
from glora_deploy.serving.tasks.contract import (
    Answer,
    BatchCount,
    Duration,
    InferRequest,
    ServedVersion,
    Statistics,
    Usage,
)

SIZE = 8
PREPROCESSING = Preprocessing(
    size=(SIZE, SIZE),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="squash",
)
LABELS = {
    "pets": ("cat", "dog", "newt"),
    "digits": ("zero", "one", "two", "three", "four"),
}


def sha256_of(task: str, version: str) -> str:
    return hashlib.sha256(f"{task}/{version}".encode()).hexdigest()


def weights(task: str, version: str, n_classes: int) -> NDArray[np.float32]:
    """``(3 * SIZE * SIZE, n_classes)``; no two versions share them."""
    seed = int(sha256_of(task, version)[:8], 16)
    drawn = np.random.default_rng(seed).normal(size=(3 * SIZE * SIZE, n_classes))
    return drawn.astype(np.float32)


def expected_logits(task: str, version: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the engine answers for images ``(n, 3, SIZE, SIZE)``."""
    flat = images.reshape(len(images), -1)
    return flat @ weights(task, version, len(LABELS.get(task, LABELS["pets"])))


@dataclass(slots=True, eq=False)
class Waiting:
    request: InferRequest
    served: ServedVersion
    future: Future[Answer]


class ToyEngine:
    """``pets`` with v1 and v2 (current), ``digits`` with v1; answers while ``release`` is set.

    Args:
        tasks: Task to its versions; the last is current.
        max_batch: Images of a request.
        max_queue: Images that may wait.
    """

    def __init__(
        self,
        tasks: dict[str, list[str]] | None = None,
        *,
        max_batch: int = 4,
        max_queue: int = 16,
    ) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self.release = threading.Event()
        self.release.set()
        self.broken: set[tuple[str, str]] = set()
        """Versions that ``load`` refuses."""
        self.fails_with: Exception | None = None
        """What every request fails with, if anything."""
        self.late = False
        """Whether the deadline of every request has passed."""
        self.seen: list[InferRequest] = []
        self.closed_with: float | None = None
        self._ready = True
        self._changed = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._in_flight = 0
        self._served: dict[str, dict[str, ServedVersion]] = {}
        self._counts: dict[tuple[str, str], Statistics] = {}
        for task, names in (tasks or {"pets": ["v1", "v2"], "digits": ["v1"]}).items():
            self._served[task] = {
                name: _served(task, name, is_current=name == names[-1]) for name in names
            }
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._ready

    def tasks(self) -> Sequence[str]:
        return sorted(self._served)

    def versions(self, task: str | None = None) -> Sequence[ServedVersion]:
        names = self.tasks() if task is None else [task]
        return [each for name in names for each in self._of(name).values()]

    def describe(self, task: str, version: str | None = None) -> ServedVersion:
        known = self._of(task)
        if version is None:
            return next(each for each in known.values() if each.is_current)
        if version not in known:
            raise UnknownTaskError(f"task {task} has no version {version}")
        return known[version]

    def submit(self, request: InferRequest) -> Future[Answer]:
        self.seen.append(request)
        served = self.describe(request.task, request.version)
        if not self._ready:
            raise UnavailableError("the server is leaving")
        if served.state != "READY":
            raise UnavailableError(f"{served.task} {served.version} is not ready")
        if request.images.shape[1:] != served.input_shape or request.images.dtype != np.float32:
            raise InputError("images must be FP32 of the model's shape")
        waiting = Waiting(request, served, Future())
        with self._changed:
            queued = sum(len(each.request.images) for each in self._queue)
            if queued + len(request.images) > self.max_queue:
                raise OverloadedError("the queue is full", retry_after_s=2.0)
            self._queue.append(waiting)
            self._in_flight += 1
            self._changed.notify_all()
        waiting.future.add_done_callback(lambda _: self._left(waiting))
        return waiting.future

    def load(self, task: str, version: str | None = None) -> ServedVersion:
        served = self.describe(task, version)
        if (served.task, served.version) in self.broken:
            raise LoadError(f"{served.task} {served.version}: sha256 must be that of its manifest")
        for name, each in self._of(task).items():
            ready = name == served.version or (version is None)
            self._of(task)[name] = replace(
                each,
                state="READY" if ready else each.state,
                reason="" if ready else each.reason,
                is_current=name == served.version,
            )
        return self.describe(task, served.version)

    def add(self, task: str, version: str) -> None:
        """As if the store had got it while the server ran; it answers when it is named."""
        self._of(task)[version] = _served(task, version, is_current=False)

    def unload(self, task: str, version: str | None = None) -> None:
        if version is not None:
            self.describe(task, version)
        for name, each in self._of(task).items():
            if version in (None, name):
                self._of(task)[name] = replace(each, state="UNAVAILABLE", reason="unloaded")

    def prefetch(self, task: str, version: str | None = None) -> None:
        served = self.describe(task, version)
        self._of(task)[served.version] = replace(served, in_memory=True, size_bytes=1000)

    def pin(self, task: str, *, pinned: bool = True) -> None:
        for name, each in self._of(task).items():
            self._of(task)[name] = replace(each, pinned=pinned)

    def statistics(
        self, task: str | None = None, version: str | None = None
    ) -> Sequence[Statistics]:
        if version is not None:
            assert task is not None
            self.describe(task, version)
        return [
            self._counts.get(
                (each.task, each.version), Statistics(task=each.task, version=each.version)
            )
            for each in self.versions(task)
            if version in (None, each.version)
        ]

    def usage(self) -> Usage:
        with self._changed:
            return Usage(
                queued=sum(len(each.request.images) for each in self._queue),
                in_flight=self._in_flight,
                weights_bytes=2000,
                budget_bytes=10_000,
                backbone_bytes=5000,
                swaps=3,
                merge_ns=7_000_000,
                evictions=1,
            )

    def close(self, drain_s: float = 30.0) -> None:
        self.closed_with = drain_s
        self._ready = False
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def wait_until(self, queued: int) -> None:
        """Return once so many images wait."""
        with self._changed:
            self._changed.wait_for(
                lambda: sum(len(each.request.images) for each in self._queue) == queued
            )

    def _of(self, task: str) -> dict[str, ServedVersion]:
        if task not in self._served:
            raise UnknownTaskError(f"no task {task} is served")
        return self._served[task]

    def _left(self, waiting: Waiting) -> None:
        with self._changed:
            with suppress(ValueError):
                self._queue.remove(waiting)
            self._in_flight -= 1
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or not self._ready)
                if not self._queue:
                    return
            self.release.wait()
            with self._changed:
                waiting = self._queue.popleft() if self._queue else None
                self._changed.notify_all()
            if waiting is not None and waiting.future.set_running_or_notify_cancel():
                self._answer(waiting)

    def _answer(self, waiting: Waiting) -> None:
        request, served = waiting.request, waiting.served
        if self.fails_with is not None:
            waiting.future.set_exception(self.fails_with)
            return
        if self.late:
            waiting.future.set_exception(DeadlineError("it waited longer than its deadline"))
            return
        n = len(request.images)
        before = self.statistics(served.task, served.version)[0]
        self._counts[served.task, served.version] = replace(
            before,
            last_inference_ms=1_700_000_000_000,
            inference_count=before.inference_count + n,
            execution_count=before.execution_count + 1,
            success=Duration(count=before.success.count + 1, ns=before.success.ns + 3000),
            queue=Duration(count=before.queue.count + 1, ns=before.queue.ns + 1000),
            compute_infer=Duration(
                count=before.compute_infer.count + 1, ns=before.compute_infer.ns + 2000
            ),
            cache_hit=Duration(count=before.cache_hit.count + 1, ns=10),
            batches=(BatchCount(batch_size=n, infer=Duration(count=1, ns=2000)),),
        )
        waiting.future.set_result(
            Answer(
                logits=expected_logits(served.task, served.version, request.images),
                task=served.task,
                version=served.version,
                delta_sha256=served.delta_sha256,
                queue_ns=1000,
                swap_ns=500,
                compute_ns=2000,
                batch_size=n,
            )
        )


def _served(task: str, version: str, *, is_current: bool) -> ServedVersion:
    return ServedVersion(
        task=task,
        version=version,
        is_current=is_current,
        state="READY",
        delta_sha256=sha256_of(task, version),
        backbone="vit_toy",
        labels=LABELS.get(task, LABELS["pets"]),
        preprocessing=PREPROCESSING,
        input_shape=(3, SIZE, SIZE),
        in_memory=is_current,
        size_bytes=1000 if is_current else 0,
    )
