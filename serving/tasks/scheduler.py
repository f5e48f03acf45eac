"""Who is answered next: queues by task version, batches of one queue, turn by turn.

A queue takes its place at the end of the line when work comes to it while it has none, and again
after each of its batches. So a task whose weights are in memory waits for at most one batch of
every task that waited when its request came, however many requests any of them sends (of the same
priority; more urgent ones go first). A queue whose weights are not in memory keeps its place and is
passed over until they are; merges are asked for in the order of the line as well.

Room to wait is shared too: a task that has some may take no more than it leaves free, so that a
flood of one is refused before others are.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..errors import DeadlineError, OverloadedError
from .contract import Answer, InferRequest
from .settings import DEFAULT_RANK

K = TypeVar("K", bound=Hashable)
L = TypeVar("L")

_SECOND = 1_000_000_000


@dataclass(order=True, slots=True)
class Pending:
    """A request that was admitted, and the future of its answer."""

    rank: int = field(init=False)
    number: int
    request: InferRequest = field(compare=False)
    future: Future[Answer] = field(compare=False)
    admitted_ns: int = field(compare=False)

    def __post_init__(self) -> None:
        self.rank = self.request.priority or DEFAULT_RANK

    @property
    def n_images(self) -> int:
        """Images of the request."""
        return len(self.request.images)


@dataclass(slots=True)
class Batch(Generic[K, L]):
    """Requests of one queue to be computed together, with the lease of their weights.

    Where queues may share a batch, ``others`` are those that do.
    """

    key: K
    lease: L
    requests: list[Pending]
    formed_ns: int
    swap_ns: int
    """How long the queue waited for its weights; 0 if they were in memory."""
    merged: bool
    """Whether they were merged for this batch."""
    others: list[Batch[K, L]] = field(default_factory=list)

    @property
    def n_images(self) -> int:
        """Images of this queue."""
        return sum(pending.n_images for pending in self.requests)


@dataclass(slots=True)
class _Queue(Generic[L]):
    turn: int
    since_ns: int
    pending: list[Pending] = field(default_factory=list)
    n_images: int = 0
    lease: L | None = None
    asked: bool = False
    """Whether somebody is getting the weights."""
    swap_ns: int = 0
    merged: bool = False


class Scheduler(Generic[K, L]):
    """Queues of requests by key; leases of weights come from outside.

    Args:
        max_batch: Images of one batch at most.
        max_delay_s: How long a batch that is not full waits for more.
        max_queue: Images that may wait, in all; of one key, no more than stay free.
        lease_held: A lease of a key's weights if they are in memory to stay; else None. Does not
            block.
        release: Ends a lease that no batch took. Does not block.
        pool: What queues must have in common to share a batch; None for a queue that never does.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_delay_s: float,
        max_queue: int,
        lease_held: Callable[[K], L | None],
        release: Callable[[L], None],
        pool: Callable[[K], object | None] = lambda key: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_delay_ns = round(max_delay_s * _SECOND)
        self._max_queue = max_queue
        self._lease_held = lease_held
        self._release = release
        self._pool = pool
        self._queues: dict[K, _Queue[L]] = {}
        self._n_images = 0
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._closed = False
        self._changed = threading.Condition()

    @property
    def n_images(self) -> int:
        """Images that wait."""
        with self._changed:
            return self._n_images

    def admit(self, key: K, request: InferRequest, future: Future[Answer]) -> None:
        """Queue a request; cancelling its future takes it out.

        Raises:
            OverloadedError: If the queue is full.
        """
        with self._changed:
            n_images = len(request.images)
            queue = self._queues.get(key)
            own = 0 if queue is None else queue.n_images
            free = self._max_queue - self._n_images - n_images
            # Whoever floods must leave as much room to others as it takes.
            if free < 0 or (own and own + n_images > free):
                raise OverloadedError(
                    f"the queue must hold at most {self._max_queue} images, and of one task no "
                    f"more than it leaves free, got {self._n_images} that wait, {own} of them of "
                    f"{request.task}, and {n_images} more. Come back later."
                )
            now = time.monotonic_ns()
            pending = Pending(next(self._numbers), request, future, now)
            if queue is None:
                queue = self._queues[key] = _Queue(next(self._turns), now)
            if queue.lease is None and not queue.asked:
                queue.lease = self._lease_held(key)
            heapq.heappush(queue.pending, pending)
            queue.n_images += n_images
            self._n_images += n_images
            self._changed.notify_all()
        future.add_done_callback(lambda done: self._cancelled(key, pending, done))

    def take(self) -> Batch[K, L] | None:
        """The next batch, as soon as there is one; None once closed and nothing waits.

        Requests whose deadline has passed fail on the way.
        """
        while True:
            with self._changed:
                late = self._overdue()
                batch = None if late else self._form()
                if not late and batch is None:
                    if self._closed and not self._queues:
                        return None
                    self._changed.wait(self._next_event_s())
                    continue
            for pending in late:
                if pending.future.set_running_or_notify_cancel():
                    pending.future.set_exception(
                        DeadlineError(f"{pending.request.task}: the deadline passed in the queue")
                    )
            if batch is not None:
                return batch

    def next_wanted(self) -> K | None:
        """The next queue that waits for weights, as soon as there is one; None once closed.

        The caller gets them and calls ``provide`` or ``refuse``.
        """
        with self._changed:
            while True:
                waiting = [
                    (queue.pending[0].rank, queue.turn, key)
                    for key, queue in self._queues.items()
                    if queue.lease is None and not queue.asked
                ]
                if waiting:
                    *_, key = min(waiting, key=lambda found: found[:2])
                    self._queues[key].asked = True
                    return key
                if self._closed and not self._queues:
                    return None
                self._changed.wait()

    def provide(self, key: K, lease: L, *, merged: bool) -> None:
        """Hand over the weights that ``next_wanted`` asked for.

        Args:
            key: The queue.
            lease: Released here if nobody waits any more.
            merged: Whether they had to be made.
        """
        with self._changed:
            queue = self._queues.get(key)
            if queue is None:
                self._release(lease)
            else:
                queue.lease, queue.asked, queue.merged = lease, False, merged
                queue.swap_ns = time.monotonic_ns() - queue.since_ns
            self._changed.notify_all()

    def refuse(self, key: K, error: Exception) -> None:
        """Fail everything that waits for weights which cannot be had."""
        with self._changed:
            queue = self._queues.pop(key, None)
            waiting = [] if queue is None else queue.pending
            self._n_images -= sum(pending.n_images for pending in waiting)
            self._changed.notify_all()
        _fail(waiting, error)

    def close(self) -> None:
        """Nothing more will be admitted: what waits is handed out at once, then ``None``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail_all(self, error: Exception) -> None:
        """Fail everything that waits."""
        with self._changed:
            keys = list(self._queues)
        for key in keys:
            with self._changed:
                queue = self._queues.pop(key, None)
                if queue is None:
                    continue
                self._n_images -= queue.n_images
                if queue.lease is not None:
                    self._release(queue.lease)
                self._changed.notify_all()
            _fail(queue.pending, error)

    def _form(self) -> Batch[K, L] | None:
        """A batch of the queue whose turn it is; what shares it fills the room that is left."""
        now = time.monotonic_ns()
        ready = sorted(
            (key for key, queue in self._queues.items() if queue.lease is not None),
            key=lambda key: (self._queues[key].pending[0].rank, self._queues[key].turn),
        )
        pooled: Counter[object] = Counter()
        for key in ready:
            pooled[self._pool(key)] += self._queues[key].n_images
        for index, key in enumerate(ready):
            pool = self._pool(key)
            is_full = pool is not None and pooled[pool] >= self._max_batch
            if not is_full and now < self._ripe_ns(self._queues[key]):
                continue
            batch = self._batch_of(key, now, self._max_batch)
            if batch is None:
                continue
            if pool is not None:
                room = self._max_batch - batch.n_images
                for other in (*ready[index + 1 :], *ready[:index]):
                    if other in self._queues and self._pool(other) == pool:
                        more = self._batch_of(other, now, room)
                        if more is not None:
                            batch.others.append(more)
                            room -= more.n_images
            return batch
        return None

    def _batch_of(self, key: K, now: int, room: int) -> Batch[K, L] | None:
        """As many requests of a queue as fit, in order; None if none does."""
        queue = self._queues[key]
        requests: list[Pending] = []
        n_images = 0
        while queue.pending and n_images + queue.pending[0].n_images <= room:
            pending = heapq.heappop(queue.pending)
            queue.n_images -= pending.n_images
            self._n_images -= pending.n_images
            if pending.future.set_running_or_notify_cancel():
                requests.append(pending)
                n_images += pending.n_images
        lease = queue.lease
        assert lease is not None
        if not requests:
            self._remove_if_empty(key)
            return None
        batch = Batch(key, lease, requests, now, queue.swap_ns, queue.merged)
        if queue.pending:
            queue.turn, queue.since_ns = next(self._turns), now
            queue.lease, queue.swap_ns, queue.merged = self._lease_held(key), 0, False
        else:
            del self._queues[key]
        self._changed.notify_all()
        return batch

    def _ripe_ns(self, queue: _Queue[L]) -> int:
        """When a batch of this queue need wait no longer."""
        if self._closed or queue.n_images >= self._max_batch:
            return 0
        return min(pending.admitted_ns for pending in queue.pending) + self._max_delay_ns

    def _next_event_s(self) -> float | None:
        """Seconds until a batch is due or a deadline passes; None if nothing is in sight."""
        events = [self._ripe_ns(q) for q in self._queues.values() if q.lease is not None]
        events += [
            round(pending.request.deadline_s * _SECOND)
            for queue in self._queues.values()
            for pending in queue.pending
            if pending.request.deadline_s is not None
        ]
        if not events:
            return None
        return max(0.0, (min(events) - time.monotonic_ns()) / _SECOND)

    def _overdue(self) -> list[Pending]:
        """Take out every request whose deadline has passed."""
        now_s = time.monotonic()
        late = [
            (key, pending)
            for key, queue in self._queues.items()
            for pending in queue.pending
            if pending.request.deadline_s is not None and pending.request.deadline_s <= now_s
        ]
        for key, pending in late:
            self._take_out(key, pending)
        return [pending for _, pending in late]

    def _cancelled(self, key: K, pending: Pending, future: Future[Answer]) -> None:
        if future.cancelled():
            with self._changed:
                self._take_out(key, pending)

    def _take_out(self, key: K, pending: Pending) -> None:
        queue = self._queues.get(key)
        if queue is None or pending not in queue.pending:
            return
        queue.pending.remove(pending)
        heapq.heapify(queue.pending)
        queue.n_images -= pending.n_images
        self._n_images -= pending.n_images
        self._remove_if_empty(key)

    def _remove_if_empty(self, key: K) -> None:
        queue = self._queues[key]
        if not queue.pending:
            del self._queues[key]
            if queue.lease is not None:
                self._release(queue.lease)
            self._changed.notify_all()


def _fail(waiting: list[Pending], error: Exception) -> None:
    for pending in waiting:
        if pending.future.set_running_or_notify_cancel():
            pending.future.set_exception(error)
