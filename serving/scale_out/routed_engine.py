"""The front's engine: it knows every version as any engine does, and has replicas compute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError

from ..errors import DeadlineError, OverloadedError, UnavailableError
from ..tasks.contract import Answer, InferRequest
from ..tasks.engine import StoreEngine
from ..tasks.settings import EngineSettings
from ..tasks.versions import LiveVersion
from .replica import Reply

_ATTEMPTS = 5
"""Replicas asked for one answer, where those before died of it or under it."""
_LONGEST_S = 60.0
"""That a replica is waited for, where the request has no deadline."""
_ONE_STORE = "Publish to the store or roll back there: every replica follows it"


class RoutedEngine(StoreEngine):
    """A ``TaskEngine`` whose answers come from replicas.

    It watches and verifies the store itself. A request is bound to one version here, before it is
    sent, and an answer of any other delta is refused: replicas that see a new version earlier or
    later than the front cannot mix two versions under one name.

    Args:
        store_path: Folder of the store; only read.
        settings: As each replica has them.
        handle: Of the replicas' deployment.
    """

    def __init__(self, store_path: Path | str, settings: EngineSettings, handle: Any) -> None:
        self._handle = handle
        self._answered: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._asking = threading.Thread(
            target=self._loop.run_forever, name="glora-ask", daemon=True
        )
        self._asking.start()
        super().__init__(store_path, replace(settings, prefetch=(), pins=()))

    def unload(self, task: str, version: str | None = None) -> None:
        """Refused: a replica that starts later would serve it again."""
        raise UnavailableError(f"{task}: cannot be unloaded from several replicas. {_ONE_STORE}")

    def pin(self, task: str, *, pinned: bool = True) -> None:
        """Refused: the weights are the replicas', who pin what they were started with."""
        raise UnavailableError(f"{task}: cannot be pinned in several replicas. {_ONE_STORE}")

    def replicas_of(self, task: str) -> dict[str, int]:
        """Answers to a task's requests by the replica (``host:pid``) that gave them."""
        return {replica: n for (name, replica), n in list(self._answered.items()) if name == task}

    def close(self, drain_s: float = 30.0) -> None:
        """As ``TaskEngine.close``."""
        super().close(drain_s)
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._asking.join()
        self._loop.close()

    def _send(self, version: LiveVersion, request: InferRequest) -> Future[Answer]:
        return asyncio.run_coroutine_threadsafe(self._ask(version, request), self._loop)

    async def _ask(self, version: LiveVersion, request: InferRequest) -> Answer:
        about, started_ns = version.about, time.monotonic_ns()
        handle = self._handle.options(
            multiplexed_model_id=f"{about.task}@{about.version}@{about.delta_sha256[:12]}"
        )
        until = request.deadline_s or time.monotonic() + _LONGEST_S
        for attempt in range(_ATTEMPTS):
            remaining_s = until - time.monotonic()
            if remaining_s <= 0:
                break
            try:
                reply: Reply = await asyncio.wait_for(
                    handle.infer.remote(
                        about.task, about.version, request.images, remaining_s, request.priority
                    ),
                    remaining_s,
                )
            except RayActorError:  # nothing was changed by it, so another may be asked
                await asyncio.sleep(0.1 * 2**attempt)
                continue
            except BackPressureError:
                raise OverloadedError(
                    "the queue of the replicas is full. Come back later"
                ) from None
            except TimeoutError:
                break
            except RayError as error:
                raise UnavailableError(f"no replica could answer for {version.name}") from error
            if not isinstance(reply.outcome, Answer):
                raise reply.outcome
            if reply.outcome.delta_sha256 != about.delta_sha256:
                raise UnavailableError(f"{version.name}: a replica holds another delta under it")
            self._answered[about.task, reply.replica] += 1
            version.counts.answered(time.monotonic_ns() - started_ns, reply.outcome.queue_ns)
            return reply.outcome
        if request.deadline_s is not None and time.monotonic() >= until:
            raise DeadlineError(f"{version.name} was not answered before the deadline")
        raise UnavailableError(f"no replica answers for {version.name} now. Come back later")
