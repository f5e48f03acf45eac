"""The weights of every task that is in memory: leased, and merged where they are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from ..engines.network import Buffer, Network
from .merge_task import head_of, merge_task
from .networks import Loaded
from .versions import LiveVersion
from .weights_cache import Held, WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedWeights:
    """A task's weights as its network runs them, and what they are of."""

    network: Network[Any]
    bound: Any
    task: str
    version: str
    delta_sha256: str


Lease: TypeAlias = Held[LiveVersion, MergedWeights]


class TaskWeights:
    """Merged weights by version; every method may be called from any thread.

    Args:
        budget_bytes: For all that is held, apart from one task more.
        network_of: What a version runs on.
    """

    def __init__(self, budget_bytes: int, network_of: Callable[[LiveVersion], Loaded]) -> None:
        self.cache: WeightsCache[LiveVersion, MergedWeights] = WeightsCache(budget_bytes)
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
            delta = version.artifact.tensors()
            head = head_of(version.artifact.manifest, delta, layout.dtype)
            return lambda buffer: self._merge(version, loaded, delta, head, buffer)

        loaded = self._network_of(version)
        layout = loaded.network.layout
        lease = self.cache.lease(version, layout.size_bytes, self.size_of(version), prepare)
        return lease, merged

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
            bound=bound,
            task=manifest.task,
            version=manifest.version,
            delta_sha256=manifest.adapter.sha256,
        )
