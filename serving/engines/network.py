"""What a runtime offers to the tasks of one backbone: room for merged weights, and runs with them.

A network is one backbone's architecture, ready to run; what tells its tasks apart are the *slots*,
the tensors that deltas adapt, and the head. The slots of one task lie in one buffer, so that
buffers of a network are alike and can be used again.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from glora_deploy.store.manifest import Manifest

ALIGNMENT = 64
"""Bytes; where a cache line starts the fused merge writes fastest."""

_HUGE_BYTES = 2**22

W = TypeVar("W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One tensor that deltas adapt, as the network takes it."""

    name: str
    """In the state dict."""
    shape: tuple[int, ...]
    """Of the network's own layout: reversed if transposed."""
    transposed: bool = False
    """Whether the network takes a weight ``(d_out, d_in)`` as ``(d_in, d_out)``."""


class Buffer:
    """Anonymous memory of a fixed size; given back to the system with its last reference.

    Args:
        size_bytes: At least 1.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            # Else the first merge meets a page fault for every 4 KiB.
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)


class SlotLayout:
    """Where each slot lies in a buffer.

    Args:
        slots: In the order in which they lie there.
        dtype: Of every one.
    """

    def __init__(self, slots: Sequence[Slot], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.slots: dict[str, Slot] = {slot.name: slot for slot in slots}
        self._offsets: dict[str, int] = {}
        end = 0
        for slot in slots:
            self._offsets[slot.name] = end
            size = math.prod(slot.shape) * dtype.itemsize
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.size_bytes = max(end, ALIGNMENT)
        """Of one buffer."""

    def views(self, buffer: Buffer) -> dict[str, NDArray[Any]]:
        """The slots inside a buffer of this layout's size, as writeable arrays."""
        found = {}
        for name, slot in self.slots.items():
            begin = self._offsets[name]
            size = math.prod(slot.shape) * self.dtype.itemsize
            found[name] = buffer.bytes[begin : begin + size].view(self.dtype).reshape(slot.shape)
        return found


class Network(Protocol, Generic[W]):
    """One architecture on one runtime; any number of threads may run it at once.

    ``W`` is what the runtime makes of a task's weights.
    """

    layout: SlotLayout
    head: tuple[str, ...]
    """Names of the classifier's tensors, which come with each task."""

    def bind(self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]) -> W:
        """A task's weights in the form in which they can be run; they are not copied.

        Args:
            slots: Every slot, in its shape; must not be written to while what is returned is used.
            head: Every tensor of the classifier, of any number of classes.
        """
        ...

    def fix(self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]) -> W | None:
        """The same weights as constants, laid out once as the runtime computes fastest with them.

        Takes long, and about as much memory again as the slots, which stay in use as well.

        Args:
            slots: As for ``bind``.
            head: As for ``bind``.

        Returns:
            None if the runtime gains nothing by it.
        """
        ...

    def run(self, weights: W, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``."""
        ...


@runtime_checkable
class MergingNetwork(Protocol, Generic[W]):
    """One architecture that merges tasks itself, in memory of its own device."""

    def size_of(self, manifest: Manifest) -> int:
        """Bytes that the weights of a task take there."""
        ...

    def merge(self, manifest: Manifest, delta: Mapping[str, NDArray[Any]]) -> W:
        """A task's weights.

        Args:
            manifest: Of the delta.
            delta: Its tensors by name. Not modified.

        Raises:
            BackboneMismatchError: If an adapted layer is not in the backbone, or has another shape.
            NonFiniteError: If a number is not finite.
        """
        ...

    def run(self, weights: W, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``."""
        ...
