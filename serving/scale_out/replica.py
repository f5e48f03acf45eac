"""One replica: a whole engine over the store, asked through a Ray Serve handle."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve

from ..errors import ServingError, UnavailableError, UnknownTaskError
from ..tasks.contract import Answer, InferRequest, ServedVersion
from ..tasks.engine import StoreEngine
from ..tasks.settings import EngineSettings
from .scale import Scale

DEPLOYMENT = "engine"
_ROUTED_VERSIONS = 256
"""That a replica is known for; Ray takes the number where the class is written."""
_ON_ITS_WAY = ("LOADING", "READY")
"""States of a version that was refused a moment ago because it was still being verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one replica says to one request."""

    replica: str
    """``host:pid`` of it."""
    outcome: Answer | ServingError
    """An error is a value here: one that is raised reaches the front wrapped by Ray."""


class EngineReplica:
    """A ``StoreEngine`` as a Ray actor.

    Args:
        store: Folder of the store, the same on every machine.
        settings: Of the engine.
    """

    def __init__(self, store: str, settings: EngineSettings) -> None:
        self._engine = StoreEngine(Path(store), settings)
        self._name = f"{platform.node()}:{os.getpid()}"
        self._coming: dict[tuple[str, str | None], asyncio.Future[ServedVersion]] = {}

    async def infer(
        self,
        task: str,
        version: str,
        images: NDArray[np.float32],
        remaining_s: float | None,
        priority: int,
    ) -> Reply:
        """Answer with exactly this version.

        Args:
            task: Its name.
            version: As the store names it.
            images: ``(n, 3, h, w)``, preprocessed.
            remaining_s: Seconds until the deadline: clocks of two machines have no common zero.
            priority: As in ``InferRequest``.
        """
        await self._affinity(serve.get_multiplexed_model_id())
        request = InferRequest(
            task=task,
            version=version,
            images=np.ascontiguousarray(images),
            deadline_s=None if remaining_s is None else time.monotonic() + remaining_s,
            priority=priority,
        )
        try:
            return Reply(replica=self._name, outcome=await self._answer(request))
        except ServingError as error:
            return Reply(replica=self._name, outcome=error)

    @serve.multiplexed(max_num_models_per_replica=_ROUTED_VERSIONS)  # type: ignore[untyped-decorator]
    async def _affinity(self, model_id: str) -> str:
        """Have Ray send this version's requests here again.

        The engine keeps the weights, within its budget and never out of use. What Ray holds is a
        name, so nothing that Ray drops was in use.
        """
        return model_id

    async def _answer(self, request: InferRequest) -> Answer:
        try:
            future = self._engine.submit(request)
        except UnknownTaskError:  # the front has seen it; this replica has not looked since
            await self._catch_up(request.task, request.version)
            future = self._engine.submit(request)
        except UnavailableError:
            if self._engine.describe(request.task, request.version).state not in _ON_ITS_WAY:
                raise
            await self._catch_up(request.task, request.version)
            future = self._engine.submit(request)
        return await asyncio.wrap_future(future)

    async def _catch_up(self, task: str, version: str | None) -> None:
        """Have the engine verify a version that the front has verified; once for all who wait."""
        wanted = (task, version)
        if (coming := self._coming.get(wanted)) is None:
            loading = asyncio.to_thread(self._engine.load, task, version)
            coming = self._coming[wanted] = asyncio.ensure_future(loading)
            coming.add_done_callback(lambda _: self._coming.pop(wanted))
        await asyncio.shield(coming)  # one who leaves takes nothing from the others

    def __del__(self) -> None:
        engine = self.__dict__.pop("_engine", None)  # Ray calls this, and Python once more
        if engine is not None:
            engine.close(0)


def replicas_app(store: str, settings: EngineSettings, scale: Scale) -> Any:
    """The deployment, for ``serve.run``.

    Args:
        store: Folder of the store.
        settings: Of each replica's engine.
        scale: How many.
    """
    options: dict[str, Any] = {
        # A batch collects what is in work, and the engine's own queue says when it is too much.
        "max_ongoing_requests": max(settings.max_queue, settings.max_batch),
        "max_queued_requests": settings.max_queue,
        "ray_actor_options": {
            "num_cpus": scale.cpus,
            "num_gpus": 1 if settings.device == "cuda" else 0,
        },
        "health_check_period_s": 2,
    }
    if scale.max_replicas is not None and scale.max_replicas > scale.replicas:
        options["autoscaling_config"] = {
            "min_replicas": scale.replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
    else:
        options["num_replicas"] = scale.replicas
    return serve.deployment(name=DEPLOYMENT, **options)(EngineReplica).bind(store, settings)
