"""What the protocols ask of an engine, and what it answers: requests, answers, states, counts.

HTTP, gRPC and Python callers see tasks through these types alone; nothing here knows a protocol,
a runtime or a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.store.export_record import Format

State: TypeAlias = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
"""Of one version of a task, in the words of the model-repository extension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """Images of one task, to be answered by one version of it."""

    task: str
    version: str | None = None
    """As the store names it; the current one if None, chosen when the request is admitted."""
    images: NDArray[np.float32]
    """Preprocessed, ``(n, 3, h, w)``, C-contiguous; not modified."""
    deadline_s: float | None = None
    """By ``time.monotonic()``; a request still queued then fails with DeadlineError."""
    priority: int = 0
    """1 is served first; 0 stands for the server's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Logits, and the delta that they were computed with."""

    logits: NDArray[np.float32]
    """``(n, n_classes)``, finite."""
    task: str
    version: str
    """As the store names it."""
    delta_sha256: str
    """Of the adapter.safetensors whose weights computed the logits."""
    queue_ns: int
    """From admission until its batch was formed; ``swap_ns`` is a part of it."""
    swap_ns: int
    """The part of ``queue_ns`` that it waited for the task's weights: next to nothing where they
    are in memory."""
    compute_ns: int
    """Running the batch that it was part of."""
    batch_size: int
    """Images in that batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedVersion:
    """One version of a task as the server knows it."""

    task: str
    version: str
    is_current: bool
    """Whether it answers requests that name no version."""
    state: State
    reason: str = ""
    """Why it is not ready; empty if it is."""
    delta_sha256: str
    backbone: str
    """timm name."""
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    """``(3, h, w)``."""
    in_memory: bool = False
    """Whether its merged weights are held: its next answer needs no merge."""
    pinned: bool = False
    size_bytes: int = 0
    """Of what is held for it alone."""
    mixed: bool = False
    """Whether it is served from the graph that answers for several tasks in one batch."""
    exported: Format | None = None
    """The format of its own export that answers, where it is not merged for serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How often something took place, and for how long in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCount:
    """Batches of one size."""

    batch_size: int
    infer: Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts of one version since the server started; the model-statistics extension's fields."""

    task: str
    version: str
    last_inference_ms: int = 0
    """Since the epoch; 0 if none."""
    inference_count: int = 0
    """Images."""
    execution_count: int = 0
    """Batches."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    rejected: int = 0
    """Of the failures: the queue was full, or the deadline passed."""
    cancelled: int = 0
    """Of the failures: the client went."""
    queue: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    """Batches whose merged weights were in memory."""
    cache_miss: Duration = field(default_factory=Duration)
    """Batches that waited for a merge; ns is the merging."""
    batches: tuple[BatchCount, ...] = ()
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the whole engine holds and waits for, now."""

    queued: int
    """Images admitted and not yet computed."""
    in_flight: int
    """Requests admitted and not yet answered."""
    weights_bytes: int
    """Merged weights in memory, of all tasks."""
    budget_bytes: int
    backbone_bytes: int
    swaps: int
    """Merges since the start."""
    merge_ns: int
    evictions: int


class TaskEngine(Protocol):
    """All tasks of a store behind one door; every method may be called from any thread.

    Versions are named as in the store. Errors are those of ``serving.errors``.
    """

    max_batch: int
    """Images of one request at most, and of one batch."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken: false before the start is done, and while draining."""
        ...

    def tasks(self) -> Sequence[str]:
        """Names of all tasks that are served, sorted."""
        ...

    def versions(self, task: str | None = None) -> Sequence[ServedVersion]:
        """Every version known of one task or of all, ready or not; by task, oldest first.

        Raises:
            UnknownTaskError: If the task is not known.
        """
        ...

    def describe(self, task: str, version: str | None = None) -> ServedVersion:
        """One version; the current one if None.

        Raises:
            UnknownTaskError: If the task or version is not known.
        """
        ...

    def submit(self, request: InferRequest) -> Future[Answer]:
        """Queue a request. Cancelling the future before its batch is formed takes it out.

        Returns:
            Fails with DeadlineError, UnavailableError or NonFiniteError as the case may be.

        Raises:
            UnknownTaskError: If the task or version is not known.
            UnavailableError: If it is known and not ready, or the engine is draining.
            InputError: If the images have another shape or dtype than the version takes, or there
                are none, or more than ``max_batch``.
            OverloadedError: If the queue is full.
        """
        ...

    def load(self, task: str, version: str | None = None) -> ServedVersion:
        """Read a task anew from the store, verify it, and let it answer; blocks until it does.

        Raises:
            UnknownTaskError: If the store has no such task or version.
            LoadError: If it was refused; what served before serves on.
        """
        ...

    def unload(self, task: str, version: str | None = None) -> None:
        """Take a task, or one version of it, out: requests admitted before are still answered.

        Raises:
            UnknownTaskError: If the task or version is not known.
        """
        ...

    def prefetch(self, task: str, version: str | None = None) -> None:
        """Have the merged weights in memory before they are asked for; blocks until they are.

        Raises:
            ServingError: As ``submit`` does of tasks.
        """
        ...

    def pin(self, task: str, *, pinned: bool = True) -> None:
        """Keep the weights of a task in memory whatever else is asked for.

        Raises:
            UnknownTaskError: If the task is not known.
            UnavailableError: If the budget cannot hold all that is pinned.
        """
        ...

    def statistics(
        self, task: str | None = None, version: str | None = None
    ) -> Sequence[Statistics]:
        """Counts of every version of a task, or of all.

        Raises:
            UnknownTaskError: If the task or version is not known.
        """
        ...

    def usage(self) -> Usage:
        """What is held and waited for at this moment."""
        ...

    def close(self, drain_s: float = 30.0) -> None:
        """Take nothing more, answer what was admitted, then let everything go.

        Args:
            drain_s: Seconds after which requests still waiting fail with UnavailableError.
        """
        ...
