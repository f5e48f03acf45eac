"""Tasks that come when they are first asked for: from a source, into the store, into the engine."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Protocol

from glora_deploy.errors import GloraDeployError

from .errors import UnavailableError, UnknownTaskError
from .tasks.contract import TaskEngine

log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""That a request waits for its task; the fetch itself goes on."""
RETRY_S = 5.0
"""After a fetch that failed, before the next one; until then requests are told why it did."""
IDLE_S = 10.0
"""Since its last request, before a task may leave to make room for others."""
_LEAVE_S = 30.0
_THREADS = 4
NOT_HERE = "not fetched yet; its first request fetches it"


class TaskSource(Protocol):
    """Where tasks come from that the store does not hold; for any thread."""

    on_demand: bool
    """Whether tasks come by ``fetch`` alone; otherwise the source brings all of them itself."""
    budget_bytes: int
    """That the store may take."""
    cache_bytes: int
    """That it takes."""
    n_fetched: int
    n_failed: int
    answered_s: float | None
    """``time.monotonic()`` when the source last answered."""
    let_go: Callable[[str], bool]
    """Asked before a task leaves the store: whether nobody uses it. Set by who serves."""

    @property
    def is_away(self) -> bool:
        """Whether the source did not answer when it was last asked."""
        ...

    def offered(self) -> Mapping[str, str]:
        """Every task there is, and its current version."""
        ...

    def offers(self, task: str) -> bool:
        """Whether there is such a task."""
        ...

    def holds(self, task: str) -> bool:
        """Whether a task is in the store, and stays for now."""
        ...

    def note_use(self, task: str) -> None:
        """A task was asked for."""
        ...

    def fetch(self, task: str) -> None:
        """Have what is current of a task in the store; blocks until it is.

        Raises:
            GloraDeployError: If it cannot be had; says why.
        """
        ...


class FirstUse:
    """Brings tasks in, and lets the engine know when they come and go.

    Args:
        engine: Serves the store that the source fills.
        source: Of the tasks; asks this object before one leaves.
    """

    def __init__(self, engine: TaskEngine, source: TaskSource) -> None:
        self._engine, self._source = engine, source
        self._wanted: SimpleQueue[str | None] = SimpleQueue()
        for _ in range(_THREADS):  # daemons: an origin that hangs must not hold up a server's end
            threading.Thread(target=self._work, name="glora-first-use", daemon=True).start()
        self._coming: dict[str, Future[None]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        """When a task may be tried again, and why it did not come."""
        self._used_s: dict[str, float] = {}
        self._out: set[str] = set()
        """Tasks that were taken out of the engine so that they can leave the store."""
        self._lock = threading.Lock()
        source.let_go = self._let_go

    def absent(self) -> dict[str, str]:
        """Tasks that the source has and the engine does not, and their current versions."""
        here = set(self._engine.tasks())
        return {task: v for task, v in sorted(self._source.offered().items()) if task not in here}

    def is_absent(self, task: str) -> bool:
        """Whether a task is one that can be brought in."""
        if not self._source.offers(task):
            return False
        return task in self._out or not (task in self._engine.tasks() and self._source.holds(task))

    def note_use(self, task: str) -> None:
        """A task is asked for."""
        self._used_s[task] = time.monotonic()
        self._source.note_use(task)

    async def bring(self, task: str, patience_s: float = PATIENCE_S) -> None:
        """Have a task that is absent answer; those who wait for one share one fetch.

        Raises:
            UnavailableError: If it does not come, or not in time.
        """
        coming = self._begin(task)
        try:
            async with asyncio.timeout(min(patience_s, PATIENCE_S)):
                await asyncio.shield(asyncio.wrap_future(coming))
        except TimeoutError:
            raise UnavailableError(f"{task} is still being fetched. Come back later") from None

    def _begin(self, task: str) -> Future[None]:
        with self._lock:
            if (coming := self._coming.get(task)) is not None:
                return coming
            again_s, reason = self._failed.get(task, (0.0, ""))
            if time.monotonic() < again_s:
                raise UnavailableError(reason)
            coming = self._coming[task] = Future()
        self._wanted.put(task)
        return coming

    def _work(self) -> None:
        """Bring tasks in, one after another, until there is nothing more to bring."""
        while (task := self._wanted.get()) is not None:
            refusal = self._bring(task)
            with self._lock:
                coming = self._coming.pop(task)
            if refusal is None:
                coming.set_result(None)
            else:
                coming.set_exception(refusal)

    def _bring(self, task: str) -> UnavailableError | None:
        try:
            self._source.fetch(task)
            self._engine.load(task)
        except Exception as error:  # nobody else would answer those who wait
            log.warning("%s: could not be brought in: %s", task, error)
            # What went wrong may name places; those who ask are told none.
            reason = f"{task} could not be fetched; the log says why. Come back later"
            with self._lock:
                self._failed[task] = (time.monotonic() + RETRY_S, reason)
            refusal = UnavailableError(reason)
            refusal.__cause__ = error
            return refusal
        self._out.discard(task)
        return None

    def _let_go(self, task: str) -> bool:
        """Take a task out of the engine if nobody uses it; whether it is out."""
        with self._lock:
            if task in self._coming:
                return False
        if time.monotonic() - self._used_s.get(task, 0.0) < IDLE_S:
            return False
        try:
            if any(each.pinned for each in self._engine.versions(task)):
                return False
            self._out.add(task)
            self._engine.unload(task)
            until_s = time.monotonic() + _LEAVE_S
            while any(each.state == "UNLOADING" for each in self._engine.versions(task)):
                if time.monotonic() > until_s:
                    self._engine.load(task)
                    self._out.discard(task)
                    return False
                time.sleep(0.02)
        except UnknownTaskError:  # it is out already
            return True
        except GloraDeployError as error:
            log.warning("%s stays: %s", task, error)
            return False
        return True

    def close(self) -> None:
        """Bring nothing more; what is being fetched is given up by its source."""
        for _ in range(_THREADS):
            self._wanted.put(None)
