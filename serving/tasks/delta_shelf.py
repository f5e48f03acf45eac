"""Deltas kept as they were read and verified, so that a merge need not go to the disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

from .versions import LiveVersion

Delta: TypeAlias = Mapping[str, NDArray[Any]]


class DeltaShelf:
    """The tensors of deltas by version, within a budget of bytes; least recently used out.

    Args:
        budget_bytes: A delta larger than this is read anew for each merge.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._kept: OrderedDict[LiveVersion, tuple[Delta, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        with self._lock:
            return self._bytes

    def delta(self, version: LiveVersion) -> Delta:
        """The tensors of a version's delta; read and verified now if they are not kept.

        Raises:
            ArtifactError: If the file is not what the manifest says.
            NonFiniteError: If a tensor holds NaN or infinity.
        """
        with self._lock:
            if (found := self._kept.get(version)) is not None:
                self._kept.move_to_end(version)
                return found[0]
        return self.read(version)

    def read(self, version: LiveVersion) -> Delta:
        """As ``delta``, from the disk in any case."""
        delta = version.artifact.tensors()
        size = sum(tensor.nbytes for tensor in delta.values())
        self.drop(version)
        if size <= self._budget_bytes:
            with self._lock:
                self._kept[version] = (delta, size)
                self._bytes += size
                while self._bytes > self._budget_bytes:
                    _, (_, freed) = self._kept.popitem(last=False)
                    self._bytes -= freed
        return delta

    def drop(self, version: LiveVersion) -> None:
        """Let go of a delta, if it is kept."""
        with self._lock:
            _, freed = self._kept.pop(version, (None, 0))
            self._bytes -= freed
