"""All tasks of a store behind one door: admission, weights, batches, answers.

A request walks once through it: it is bound to a version (``live_store``), waits in that version's
queue (``scheduler``), its batch is formed when the version's weights are in memory
(``weights_cache``, filled by ``merge_task``), and a network (``engines``) computes the answers. One
thread computes, one gets weights, one watches the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import GloraDeployError, NonFiniteError, StoreError
from glora_deploy.store.reader import StoreReader
from glora_deploy.store.store import ArtifactStore

from ..engines.network import Buffer, Network
from ..errors import InputError, LoadError, TooLargeError, UnavailableError
from .contract import Answer, InferRequest, ServedVersion, Statistics, Usage
from .live_store import LiveStore
from .merge_task import head_of, merge_task
from .networks import Networks
from .proof import require_proof
from .scheduler import Batch, Scheduler
from .settings import EngineSettings
from .versions import LiveVersion
from .weights_cache import Held, WeightsCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedWeights:
    """A task's weights as its network runs them, and what they are of."""

    network: Network[Any]
    bound: Any
    task: str
    version: str
    delta_sha256: str


Lease: TypeAlias = Held[LiveVersion, MergedWeights]


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
        self._weights: WeightsCache[LiveVersion, MergedWeights] = WeightsCache(
            settings.memory_budget_bytes
        )
        self._live = LiveStore(
            self._store, check=self._check, prove=self._prove, retire=self._weights.drop
        )
        self._scheduler: Scheduler[LiveVersion, Lease] = Scheduler(
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_ms / 1e3,
            max_queue=settings.max_queue,
            lease_held=self._weights.lease_held,
            release=self._weights.release,
        )
        self._pins: set[str] = set()
        self._in_flight = 0
        self._swaps, self._merge_ns = 0, 0
        self._state = threading.Condition()
        self._open = False
        self._stop_watching = threading.Event()
        self._live.scan()
        self._threads = [
            threading.Thread(target=target, name=f"glora-{target.__name__[1:]}", daemon=True)
            for target in (self._compute, self._get_weights, self._watch)
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
        sizes = self._weights.sizes()
        found = [self._served(v, sizes, is_current) for v, is_current in self._live.versions(task)]
        broken = self._live.broken(task)
        if not broken:
            return found
        found += [_unreadable(*name, reason) for name, reason in broken.items()]
        return sorted(found, key=lambda served: served.task)

    def describe(self, task: str, version: str | None = None) -> ServedVersion:
        """As ``TaskEngine.describe``."""
        found, is_current = self._live.find(task, version)
        return self._served(found, self._weights.sizes(), is_current)

    def submit(self, request: InferRequest) -> Future[Answer]:
        """As ``TaskEngine.submit``."""
        with self._state:
            if not self._open:
                raise UnavailableError("the server takes no requests now. Come back later.")
            version = self._live.admit(request.task, request.version)
            self._in_flight += 1
        started_ns = time.monotonic_ns()
        future: Future[Answer] = Future()
        try:
            _require_images(request.images, version.about.input_shape, self.max_batch)
            self._scheduler.admit(version, request, future)
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
            self._weights.release(self._lease(found)[0])
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
        sizes = self._weights.sizes()
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
            weights_bytes=self._weights.held_bytes,
            budget_bytes=self._weights.budget_bytes,
            backbone_bytes=self._networks.backbone_bytes,
            swaps=self._swaps,
            merge_ns=self._merge_ns,
            evictions=self._weights.evictions,
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
        )

    def _check(self, version: LiveVersion) -> None:
        """Refuse a version whose proof, backbone or graph speaks against it."""
        require_proof(
            self._store,
            version.artifact,
            self.settings.precision,
            allow_unproven=self.settings.allow_unproven,
            require_proven=self.settings.require_proven,
        )
        self._networks.of(version.artifact, self._live.artifacts)

    def _prove(self, version: LiveVersion) -> None:
        """Read and verify a delta anew, and have it merged: all that can fail has been tried."""
        version.artifact.tensors()
        self._weights.release(self._lease(version, refuse=False)[0])

    def _lease(self, version: LiveVersion, *, refuse: bool = True) -> tuple[Lease, bool]:
        """The weights of a version, and whether they had to be merged.

        Raises:
            GloraDeployError: If they cannot be had; the version is then refused.
            OSError: If there is no memory for them now.
        """
        merged = False

        def prepare() -> Callable[[Buffer], MergedWeights]:
            nonlocal merged
            merged = True
            delta = artifact.tensors()
            head = head_of(manifest, delta, network.layout.dtype)
            return lambda buffer: self._merge(version, delta, head, buffer)

        try:
            artifact = version.artifact
            manifest = artifact.manifest
            network = self._networks.of(artifact, self._live.artifacts).network
            head_bytes = _head_bytes(version, network)
            size = network.layout.size_bytes
            return self._weights.lease(version, size, size + head_bytes, prepare), merged
        except GloraDeployError as error:
            if refuse:
                self._live.refuse(version, self._live.shown(error))
            raise

    def _merge(
        self,
        version: LiveVersion,
        delta: dict[str, NDArray[Any]],
        head: dict[str, NDArray[Any]],
        buffer: Buffer,
    ) -> MergedWeights:
        started_ns = time.monotonic_ns()
        manifest = version.artifact.manifest
        loaded = self._networks.of(version.artifact, self._live.artifacts)
        layout = loaded.network.layout
        out = layout.views(buffer)
        merge_task(manifest, delta, loaded.frozen, layout.slots, out)
        bound = loaded.network.bind(out, head)
        self._swaps += 1
        self._merge_ns += time.monotonic_ns() - started_ns
        return MergedWeights(
            network=loaded.network,
            bound=bound,
            task=manifest.task,
            version=manifest.version,
            delta_sha256=manifest.adapter.sha256,
        )

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

    def _compute(self) -> None:
        """Run batches until the engine is closed and nothing waits."""
        while (batch := self._scheduler.take()) is not None:
            try:
                answers = self._run(batch)
            except Exception as error:  # nobody else would answer those who wait
                log.exception("a batch of %s failed", batch.key.name)
                answers = [error] * len(batch.requests)
            finally:
                self._weights.release(batch.lease)
            for pending, answer in zip(batch.requests, answers, strict=True):
                if isinstance(answer, Exception):
                    pending.future.set_exception(answer)
                else:
                    batch.key.counts.answered(
                        time.monotonic_ns() - pending.admitted_ns, answer.queue_ns
                    )
                    pending.future.set_result(answer)

    def _run(self, batch: Batch[LiveVersion, Lease]) -> list[Answer | Exception]:
        weights = batch.lease.value
        requests = [pending.request for pending in batch.requests]
        images = np.ascontiguousarray(np.concatenate([request.images for request in requests]))
        started_ns = time.monotonic_ns()
        logits = weights.network.run(weights.bound, images)
        compute_ns = time.monotonic_ns() - started_ns
        n_classes = len(batch.key.about.labels)
        if logits.shape != (len(images), n_classes):
            raise LoadError(
                f"{batch.key.name}: logits must have shape {(len(images), n_classes)}, "
                f"got {logits.shape}"
            )
        batch.key.counts.computed(
            len(images), compute_ns, hit=not batch.merged, merge_ns=batch.swap_ns
        )
        answers: list[Answer | Exception] = []
        first = 0
        for pending in batch.requests:
            own = logits[first : first + pending.n_images]
            first += pending.n_images
            if not np.isfinite(own).all():
                answers.append(NonFiniteError(f"{batch.key.name}: logits are not finite"))
                continue
            queue_ns = batch.formed_ns - pending.admitted_ns
            answers.append(
                Answer(
                    logits=own,
                    task=weights.task,
                    version=weights.version,
                    delta_sha256=weights.delta_sha256,
                    queue_ns=queue_ns,
                    swap_ns=min(batch.swap_ns, queue_ns),
                    compute_ns=compute_ns,
                    batch_size=len(images),
                )
            )
        return answers

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
        except StoreError:
            return
        for version, is_current in versions:
            if is_current and task in self._pins:
                self._weights.pin(version)
            else:
                self._weights.unpin(version)

    def _require_room(self, pins: set[str]) -> None:
        sizes = []
        for task in sorted(pins):
            version, _ = self._live.find(task, None)
            network = self._networks.of(version.artifact, self._live.artifacts).network
            sizes.append(network.layout.size_bytes + _head_bytes(version, network))
        if sum(sizes) > self._weights.budget_bytes:
            raise UnavailableError(
                f"the budget of {self._weights.budget_bytes} bytes must hold all that is pinned, "
                f"got {sum(sizes)} bytes of {len(sizes)} tasks"
            )


def _require_images(
    images: NDArray[np.float32], shape: tuple[int, int, int], max_batch: int
) -> None:
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise InputError(
            f"images must be float32 of shape (n, {wanted}), got {images.dtype} {images.shape}"
        )
    if not len(images):
        raise InputError("images must be at least 1, got 0")
    if len(images) > max_batch:
        raise TooLargeError(f"images must be at most {max_batch} at once, got {len(images)}")


def _error_of(future: Future[Answer]) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()


def _head_bytes(version: LiveVersion, network: Network[Any]) -> int:
    n_parameters = version.artifact.manifest.n_head_parameters
    return n_parameters * network.layout.dtype.itemsize


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
