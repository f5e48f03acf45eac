"""The weights of every task that is in memory: leased, and merged where they are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engines.network import Buffer, Network
from .delta_shelf import DeltaShelf
from .merge_task import head_of, merge_task
from .networks import Loaded
from .versions import LiveVersion
from .weights_cache import Held, WeightsCache


@dataclass(slots=True, kw_only=True)
class MergedWeights:
    """A task's weights as its network runs them, and what they are of."""

    network: Network[Any]
    slots: Mapping[str, NDArray[Any]]
    head: Mapping[str, NDArray[Any]]
    bound: Any
    fixed: Any = None
    """The same as constants, if they were made for a task that stayed hot."""
    n_batches: int = 0
    """Computed since the merge."""
    task: str
    version: str
    delta_sha256: str

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch."""
        self.n_batches += 1
        weights = self.fixed  # another thread may take it away
        return self.network.run(self.bound if weights is None else weights, images)


Lease: TypeAlias = Held[LiveVersion, MergedWeights]


_SHELF_SHARE = 8
"""One part of so many of the budget keeps deltas as they were read."""


def _unfix(weights: MergedWeights) -> None:
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
        self.cache: WeightsCache[LiveVersion, MergedWeights] = WeightsCache(
            budget_bytes - kept_bytes, _unfix
        )
        self.swaps = 0
        """Merges since the start."""
        self.merge_ns = 0
        self._network_of = network_of
        self._lock = threading.Lock()

    def size_of(self, version: LiveVersion) -> int:
        """Bytes that a version takes in memory."""
        layout = self._network_of(version).network.layout
        n_head = version.artifact.manifest.n_head_parameters
        return layout.size_bytes + n_head * layout.dtype.itemsize

    def lease(self, version: LiveVersion) -> tuple[Lease, bool]:
        """The weights of a version, and whether they had to be merged.

        The delta's bytes are checked against their sha256 before they are merged.

        Raises:
            GloraDeployError: If the delta, or what it is merged into, is not what it must be.
            OSError: If there is no memory for them.
        """
        merged = False

        def prepare() -> Callable[[Buffer], MergedWeights]:
            nonlocal merged
            merged = True
            delta = self.deltas.delta(version)
            head = head_of(version.artifact.manifest, delta, layout.dtype)
            return lambda buffer: self._merge(version, loaded, delta, head, buffer)

        loaded = self._network_of(version)
        layout = loaded.network.layout
        lease = self.cache.lease(version, layout.size_bytes, self.size_of(version), prepare)
        return lease, merged

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

    def _merge(
        self,
        version: LiveVersion,
        loaded: Loaded,
        delta: Mapping[str, NDArray[Any]],
        head: Mapping[str, NDArray[Any]],
        buffer: Buffer,
    ) -> MergedWeights:
        started_ns = time.monotonic_ns()
        manifest, network = version.artifact.manifest, loaded.network
        out = network.layout.views(buffer)
        merge_task(manifest, delta, loaded.frozen, network.layout.slots, out)
        bound = network.bind(out, head)
        with self._lock:
            self.swaps += 1
            self.merge_ns += time.monotonic_ns() - started_ns
        return MergedWeights(
            network=network,
            slots=out,
            head=head,
            bound=bound,
            task=manifest.task,
            version=manifest.version,
            delta_sha256=manifest.adapter.sha256,
        )
