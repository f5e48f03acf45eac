"""What was answered, refused and waited for, by version, since the start."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from dataclasses import dataclass

from ..errors import DeadlineError, OverloadedError
from .contract import BatchCount, Duration, Statistics


@dataclass(slots=True)
class _Sum:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def read(self) -> Duration:
        return Duration(count=self.count, ns=self.ns)


class VersionCounts:
    """Counts of one version; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_inference_ms = 0
        self._images = 0
        self._failures: Counter[str] = Counter()
        self._sums = {name: _Sum() for name in _SUMS}
        self._batches: dict[int, _Sum] = {}

    def computed(self, n_images: int, compute_ns: int, *, hit: bool, merge_ns: int) -> None:
        """One batch ran.

        Args:
            n_images: In it.
            compute_ns: Running it.
            hit: Whether its weights were in memory.
            merge_ns: What the merge took, if they were not.
        """
        with self._lock:
            self._last_inference_ms = time.time_ns() // 1_000_000
            self._images += n_images
            self._sums["compute_infer"].add(compute_ns)
            self._sums["cache_hit" if hit else "cache_miss"].add(0 if hit else merge_ns)
            self._batches.setdefault(n_images, _Sum()).add(compute_ns)

    def answered(self, total_ns: int, queue_ns: int) -> None:
        """One request was answered."""
        with self._lock:
            self._sums["success"].add(total_ns)
            self._sums["queue"].add(queue_ns)

    def failed(self, error: BaseException, total_ns: int) -> None:
        """One request was not; ``CancelledError`` if its client went."""
        with self._lock:
            self._sums["fail"].add(total_ns)
            if isinstance(error, CancelledError):
                self._failures["cancelled"] += 1
            elif isinstance(error, OverloadedError | DeadlineError):
                self._failures["rejected"] += 1

    def read(self, task: str, version: str, memory_bytes: int) -> Statistics:
        """The counts as they are now."""
        with self._lock:
            return Statistics(
                task=task,
                version=version,
                last_inference_ms=self._last_inference_ms,
                inference_count=self._images,
                execution_count=self._sums["compute_infer"].count,
                rejected=self._failures["rejected"],
                cancelled=self._failures["cancelled"],
                batches=tuple(
                    BatchCount(batch_size=size, infer=total.read())
                    for size, total in sorted(self._batches.items())
                ),
                memory_bytes=memory_bytes,
                **{name: total.read() for name, total in self._sums.items()},
            )


_SUMS = ("success", "fail", "queue", "compute_infer", "cache_hit", "cache_miss")
