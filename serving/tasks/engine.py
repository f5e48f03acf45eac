"""All tasks of a store behind one door: admission, weights, batches, answers.

A request walks once through it: it is bound to a version (``live_store``), waits in that version's
queue (``scheduler``), its batch is formed when the version's weights are in memory
(``weights_cache``, filled by ``merge_task``), and a network (``engines``) computes the answers. One
thread computes, one gets weights, one makes those of hot tasks faster, one watches the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import GloraDeployError
from glora_deploy.precision import PRECISIONS
from glora_deploy.store.reader import StoreReader
from glora_deploy.store.store import ArtifactStore

from ..engines.mixed import MixedNetwork
from ..errors import UnavailableError, UnknownTaskError
from .contract import Answer, InferRequest, ServedVersion, Statistics, Usage
from .live_store import LiveStore
from .merge_task import warm_up
from .networks import Loaded, Networks
from .proof import require_proof
from .run_batch import require_images, run_batch, try_out
from .scheduler import Scheduler
from .settings import EngineSettings
from .task_weights import Lease, TaskWeights
from .versions import LiveVersion

log = logging.getLogger(__name__)


class StoreEngine:
    """A ``TaskEngine`` over a store, on the CPU or one GPU.

    Args:
        store_path: Folder of the store; only read.
        settings: How to run.

    Raises:
        StoreError: If there is no store.
        MissingDependencyError: If the runtime is missing.
        ServingError: If a task of ``prefetch`` or ``pins`` cannot be served.
    """

    def __init__(self, store_path: Path | str, settings: EngineSettings | None = None) -> None:
        self.settings = settings = settings or EngineSettings()
        self.max_batch = settings.max_batch
        self._store: StoreReader = ArtifactStore.open(store_path)
        self._networks = Networks(self._store, settings)
        self._weights = TaskWeights(settings.memory_budget_bytes, self._network_of)
        cache = self._weights.cache
        self._live = LiveStore(
            self._store, check=self._check, prove=self._prove, retire=self._weights.drop
        )
        self._scheduler: Scheduler[LiveVersion, Lease] = Scheduler(
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_ms / 1e3,
            max_queue=settings.max_queue,
            lease_held=cache.lease_held,
            release=cache.release,
            pool=lambda version: version.pool,
        )
        self._hot: SimpleQueue[LiveVersion | None] = SimpleQueue()
        self._pins: set[str] = set()
        self._in_flight = 0
        self._state = threading.Condition()
        self._open = False
        self._stop_watching = threading.Event()
        warm_up(PRECISIONS[settings.precision])
        self._live.scan()
        self._threads = [
            threading.Thread(target=target, name=f"glora-{target.__name__[1:]}", daemon=True)
            for target in (self._compute, self._get_weights, self._fix_hot, self._watch)
        ]
        for thread in self._threads:
            thread.start()
        try:
            for task in dict.fromkeys((*settings.pins, *settings.prefetch)):
                self.prefetch(task)
            for task in settings.pins:
                self.pin(task)
        except BaseException:
            self.close(0)
            raise
        self._open = True

    def __enter__(self) -> StoreEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """As ``TaskEngine.ready``."""
        return self._open

    def tasks(self) -> Sequence[str]:
        """As ``TaskEngine.tasks``."""
        return self._live.tasks()

    def versions(self, task: str | None = None) -> Sequence[ServedVersion]:
        """As ``TaskEngine.versions``."""
        sizes = self._weights.cache.sizes()
        found = [self._served(v, sizes, is_current) for v, is_current in self._live.versions(task)]
        broken = self._live.broken(task)
        if not broken:
            return found
        found += [_unreadable(*name, reason) for name, reason in broken.items()]
        return sorted(found, key=lambda served: served.task)

    def describe(self, task: str, version: str | None = None) -> ServedVersion:
        """As ``TaskEngine.describe``."""
        found, is_current = self._live.find(task, version)
        return self._served(found, self._weights.cache.sizes(), is_current)

    def submit(self, request: InferRequest) -> Future[Answer]:
        """As ``TaskEngine.submit``."""
        with self._state:
            if not self._open:
                raise UnavailableError("the server takes no requests now. Come back later.")
            version = self._live.admit(request.task, request.version)
            self._in_flight += 1
        started_ns = time.monotonic_ns()
        try:
            require_images(request.images, version.about.input_shape, self.max_batch)
            future = self._send(version, request)
        except GloraDeployError as error:
            self._ended(version, error, started_ns)
            raise
        future.add_done_callback(lambda done: self._ended(version, _error_of(done), started_ns))
        return future

    def load(self, task: str, version: str | None = None) -> ServedVersion:
        """As ``TaskEngine.load``."""
        found = self._live.load(task, version)
        self._update_pins(task)
        return self.describe(task, found.artifact.version)

    def unload(self, task: str, version: str | None = None) -> None:
        """As ``TaskEngine.unload``."""
        self._live.unload(task, version)

    def prefetch(self, task: str, version: str | None = None) -> None:
        """As ``TaskEngine.prefetch``."""
        found = self._live.admit(task, version)
        try:
            self._weights.cache.release(self._lease(found)[0])
        except (GloraDeployError, OSError) as error:
            raise UnavailableError(f"{found.name} cannot be served: {found.reason}") from error
        finally:
            self._live.done(found)

    def pin(self, task: str, *, pinned: bool = True) -> None:
        """As ``TaskEngine.pin``; the version that is current answers for the task's place."""
        self._live.versions(task)
        if pinned:
            self._require_room(self._pins | {task})
        with self._state:
            self._pins = self._pins | {task} if pinned else self._pins - {task}
        self._update_pins(task)

    def statistics(
        self, task: str | None = None, version: str | None = None
    ) -> Sequence[Statistics]:
        """As ``TaskEngine.statistics``."""
        sizes = self._weights.cache.sizes()
        if task is not None and version is not None:
            chosen = [self._live.find(task, version)[0]]
        else:
            chosen = [found for found, _ in self._live.versions(task)]
        return [
            one.counts.read(one.artifact.task, one.artifact.version, sizes.get(one, 0))
            for one in chosen
        ]

    def usage(self) -> Usage:
        """As ``TaskEngine.usage``."""
        return Usage(
            queued=self._scheduler.n_images,
            in_flight=self._in_flight,
            weights_bytes=self._weights.cache.held_bytes,
            budget_bytes=self.settings.memory_budget_bytes,
            backbone_bytes=self._networks.backbone_bytes,
            swaps=self._weights.swaps,
            merge_ns=self._weights.merge_ns,
            evictions=self._weights.cache.evictions,
        )

    def close(self, drain_s: float = 30.0) -> None:
        """As ``TaskEngine.close``; a second call does nothing."""
        with self._state:
            self._open = False
        self._stop_watching.set()
        self._scheduler.close()
        with self._state:
            drained = self._state.wait_for(lambda: not self._in_flight, drain_s)
        if not drained:
            self._scheduler.fail_all(UnavailableError("the server is leaving. Ask another one."))
        self._hot.put(None)
        for thread in self._threads:
            thread.join()

    def _served(
        self, version: LiveVersion, sizes: dict[LiveVersion, int], is_current: bool
    ) -> ServedVersion:
        return replace(
            version.about,
            is_current=is_current,
            state=version.state,
            reason=version.reason,
            in_memory=version in sizes,
            pinned=is_current and version.artifact.task in self._pins,
            size_bytes=sizes.get(version, 0),
            mixed=version.pool is not None,
            exported=version.exported,
        )

    def _send(self, version: LiveVersion, request: InferRequest) -> Future[Answer]:
        """Have an admitted request answered by exactly this version; ``submit`` sees to its end.

        Raises:
            OverloadedError: If there is no room for it to wait.
        """
        future: Future[Answer] = Future()
        self._scheduler.admit(version, request, future)
        return future

    def _check(self, version: LiveVersion) -> None:
        """Refuse a version whose proof, backbone or graph speaks against it."""
        require_proof(
            self._store,
            version.artifact,
            self.settings.precision,
            allow_unproven=self.settings.allow_unproven,
            require_proven=self.settings.require_proven,
        )
        exported = self._networks.exported_of(version.artifact)
        if exported != version.exported:
            self._weights.drop(version)
            version.exported = exported
        version.loaded = None  # an export may have been made anew
        network = self._network_of(version).network
        version.pool = network if isinstance(network, MixedNetwork) else None

    def _network_of(self, version: LiveVersion) -> Loaded:
        if (loaded := version.loaded) is None:
            loaded = version.loaded = self._networks.of(
                version.artifact, version.exported, self._live.artifacts
            )
        return loaded

    def _prove(self, version: LiveVersion) -> None:
        """Read and verify a delta anew, have it merged and answer once: all that can fail."""
        self._weights.deltas.read(version)
        lease, _ = self._weights.lease(version)
        try:
            try_out(version, lease.value)
        finally:
            self._weights.cache.release(lease)

    def _lease(self, version: LiveVersion) -> tuple[Lease, bool]:
        """As ``TaskWeights.lease``; a version whose weights cannot be made is refused for good."""
        try:
            return self._weights.lease(version)
        except GloraDeployError as error:
            self._live.refuse(version, self._live.shown(error))
            raise

    def _get_weights(self) -> None:
        """Merge what waits to be merged, until the engine is closed."""
        while (version := self._scheduler.next_wanted()) is not None:
            try:
                lease, merged = self._lease(version)
            except Exception as error:  # nobody else would answer those who wait
                log.debug("no weights for %s", version.name, exc_info=True)
                refusal = UnavailableError(
                    f"{version.name} cannot be served: {self._live.shown(error)}"
                )
                refusal.__cause__ = error
                self._scheduler.refuse(version, refusal)
            else:
                self._scheduler.provide(version, lease, merged=merged)

    def _fix_hot(self) -> None:
        """Lay out the weights of tasks that stay hot as constants, until the engine is closed."""
        while (version := self._hot.get()) is not None:
            try:
                self._weights.fix(version)
            except Exception:  # they are answered as before
                log.exception("the weights of %s cannot be laid out as constants", version.name)

    def _compute(self) -> None:
        """Run batches until the engine is closed and nothing waits."""
        while (batch := self._scheduler.take()) is not None:
            parts = [batch, *batch.others]
            try:
                answers = run_batch(batch)
            except Exception as error:  # nobody else would answer those who wait
                log.exception("a batch of %s failed", batch.key.name)
                answers = [[error] * len(part.requests) for part in parts]
            for part in parts:
                after, n_batches = self.settings.hot_after, part.lease.value.n_batches
                hot = after is not None and n_batches % after == 0
                self._weights.cache.release(part.lease)
                if hot:
                    self._hot.put(part.key)
            for part, found in zip(parts, answers, strict=True):
                for pending, answer in zip(part.requests, found, strict=True):
                    if isinstance(answer, Exception):
                        pending.future.set_exception(answer)
                        continue
                    total_ns = time.monotonic_ns() - pending.admitted_ns
                    part.key.counts.answered(total_ns, answer.queue_ns)
                    pending.future.set_result(answer)

    def _watch(self) -> None:
        """Look at the store now and then, until the engine is closed."""
        interval = self.settings.watch_s
        while interval is not None and not self._stop_watching.wait(interval):
            self._live.poll()
            for task in list(self._pins):
                self._update_pins(task)

    def _ended(self, version: LiveVersion, error: BaseException | None, started_ns: int) -> None:
        if error is not None:
            version.counts.failed(error, time.monotonic_ns() - started_ns)
        self._live.done(version)
        with self._state:
            self._in_flight -= 1
            self._state.notify_all()

    def _update_pins(self, task: str) -> None:
        """Pin what is current of a pinned task, and nothing else of it."""
        try:
            versions = self._live.versions(task)
        except UnknownTaskError:
            return
        for version, is_current in versions:
            if is_current and task in self._pins:
                self._weights.cache.pin(version)
            else:
                self._weights.cache.unpin(version)

    def _require_room(self, pins: set[str]) -> None:
        size = sum(self._weights.size_of(self._live.find(task, None)[0]) for task in pins)
        if size > (budget := self._weights.cache.budget_bytes):
            raise UnavailableError(
                f"the budget of {budget} bytes must hold all that is pinned, got {size} bytes of "
                f"{len(pins)} tasks"
            )


def _error_of(future: Future[Answer]) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()


def _unreadable(task: str, version: str, reason: str) -> ServedVersion:
    """A version of which nothing is known but that its manifest cannot be read."""
    return ServedVersion(
        task=task,
        version=version,
        is_current=False,
        state="UNAVAILABLE",
        reason=reason,
        delta_sha256="",
        backbone="",
        labels=(),
        preprocessing=Preprocessing(
            size=(1, 1),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation="bilinear",
            crop_pct=1.0,
            crop_mode="center",
        ),
        input_shape=(3, 1, 1),
    )
