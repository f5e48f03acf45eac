"""The weights of every task that is in memory: leased, and merged where they are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import NonFiniteError
from glora_deploy.store.manifest import Manifest

from ..engines.mixed import MixedNetwork, RowTerms
from ..engines.network import Buffer, MergingNetwork, Network
from .delta_shelf import Delta, DeltaShelf
from .merge_task import head_of, merge_task
from .networks import Loaded
from .versions import LiveVersion
from .weights_cache import Held, WeightsCache


@dataclass(slots=True, kw_only=True)
class _InMemory:
    """What weights are of: it goes where they go, into every answer."""

    task: str
    version: str
    delta_sha256: str
    n_batches: int = 0
    """Computed with them."""


@dataclass(slots=True, kw_only=True)
class MergedWeights(_InMemory):
    """A task's weights as its network runs them."""

    network: Network[Any] | MergingNetwork[Any]
    bound: Any
    slots: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Where the network does not merge itself."""
    head: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    fixed: Any = None
    """The same as constants, if they were made for a task that stayed hot."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch."""
        weights = self.fixed  # another thread may take it away
        return self.network.run(self.bound if weights is None else weights, images)


@dataclass(slots=True, kw_only=True)
class MixedWeights(_InMemory):
    """A task's terms, where batches hold images of many tasks."""

    network: MixedNetwork
    terms: RowTerms


TaskInMemory: TypeAlias = MergedWeights | MixedWeights
Lease: TypeAlias = Held[LiveVersion, TaskInMemory]

_SHELF_SHARE = 8
"""One part of so many of the budget keeps deltas as they were read."""


def _unfix(weights: TaskInMemory) -> None:
    if isinstance(weights, MergedWeights):
        weights.fixed = None


class TaskWeights:
    """Merged weights by version; every method may be called from any thread.

    Args:
        budget_bytes: For all that is held, deltas included, apart from one task more.
        network_of: What a version runs on.
    """

    def __init__(self, budget_bytes: int, network_of: Callable[[LiveVersion], Loaded]) -> None:
        kept_bytes = budget_bytes // _SHELF_SHARE
        self.deltas = DeltaShelf(kept_bytes)
        self.cache: WeightsCache[LiveVersion, TaskInMemory] = WeightsCache(
            budget_bytes - kept_bytes, _unfix
        )
        self.swaps = 0
        """Merges since the start."""
        self.merge_ns = 0
        self._network_of = network_of
        self._lock = threading.Lock()

    def size_of(self, version: LiveVersion) -> int:
        """Bytes that a version takes in memory."""
        network, manifest = self._network_of(version).network, version.artifact.manifest
        if isinstance(network, MixedNetwork | MergingNetwork):
            return network.size_of(manifest)
        layout = network.layout
        return layout.size_bytes + manifest.n_head_parameters * layout.dtype.itemsize

    def lease(self, version: LiveVersion) -> tuple[Lease, bool]:
        """The weights of a version, and whether they had to be made.

        The delta's bytes are checked against their sha256 before they are used.

        Raises:
            GloraDeployError: If the delta, or what it is merged into, is not what it must be.
            OSError: If there is no memory for them.
        """
        made = False
        loaded = self._network_of(version)
        network, manifest = loaded.network, version.artifact.manifest

        def prepare() -> Callable[[Buffer], TaskInMemory]:
            nonlocal made
            made = True
            delta = self.deltas.delta(version)
            if isinstance(network, MixedNetwork):
                return lambda buffer: self._timed(lambda: _mixed(network, manifest, delta))
            if isinstance(network, MergingNetwork):
                return lambda buffer: self._timed(lambda: _merged_there(network, manifest, delta))
            head = head_of(manifest, delta, network.layout.dtype)
            return lambda buffer: self._timed(
                lambda: _merged(network, manifest, delta, head, loaded.frozen, buffer)
            )

        # What has memory of its own needs no buffer.
        buffer_bytes = (
            1 if isinstance(network, MixedNetwork | MergingNetwork) else network.layout.size_bytes
        )
        lease = self.cache.lease(version, buffer_bytes, self.size_of(version), prepare)
        return lease, made

    def drop(self, version: LiveVersion) -> None:
        """Let go of all that is kept of a version; of its weights when their last lease ends."""
        self.cache.drop(version)
        self.deltas.drop(version)

    def fix(self, version: LiveVersion) -> bool:
        """Have the weights of a version as constants, if they are in memory and that fits.

        Returns:
            Whether they are now.
        """
        lease = self.cache.lease_held(version)
        if lease is None:
            return False
        try:
            weights = lease.value
            if isinstance(weights, MixedWeights) or isinstance(weights.network, MergingNetwork):
                return False
            if weights.fixed is not None:
                return True
            if not self.cache.grow(lease, weights.network.layout.size_bytes):
                return False
            try:
                weights.fixed = weights.network.fix(weights.slots, weights.head)
            finally:
                if weights.fixed is None:
                    self.cache.grow(lease, 0)
            return weights.fixed is not None
        finally:
            self.cache.release(lease)

    def _timed(self, make: Callable[[], TaskInMemory]) -> TaskInMemory:
        started_ns = time.monotonic_ns()
        made = make()
        with self._lock:
            self.swaps += 1
            self.merge_ns += time.monotonic_ns() - started_ns
        return made


def _merged(
    network: Network[Any],
    manifest: Manifest,
    delta: Delta,
    head: Mapping[str, NDArray[Any]],
    frozen: Mapping[str, NDArray[Any]],
    buffer: Buffer,
) -> MergedWeights:
    slots = network.layout.views(buffer)
    merge_task(manifest, delta, frozen, network.layout.slots, slots)
    return MergedWeights(
        network=network,
        slots=slots,
        head=head,
        bound=network.bind(slots, head),
        task=manifest.task,
        version=manifest.version,
        delta_sha256=manifest.adapter.sha256,
    )


def _merged_there(network: MergingNetwork[Any], manifest: Manifest, delta: Delta) -> MergedWeights:
    return MergedWeights(
        network=network,
        bound=network.merge(manifest, delta),
        task=manifest.task,
        version=manifest.version,
        delta_sha256=manifest.adapter.sha256,
    )


def _mixed(network: MixedNetwork, manifest: Manifest, delta: Delta) -> MixedWeights:
    terms = network.terms(manifest, delta)
    if not all(np.isfinite(value).all() for value in terms.values.values()):
        raise NonFiniteError(f"{manifest.task}/{manifest.version}: its terms must be finite")
    return MixedWeights(
        network=network,
        terms=terms,
        task=manifest.task,
        version=manifest.version,
        delta_sha256=manifest.adapter.sha256,
    )
