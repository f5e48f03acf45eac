"""Merged weights of the hot tasks, within a budget of bytes; least recently used out.

Memory holds at most the budget and one task more: what is being merged, or what was merged and
found no room because all the rest was in use. Merging is therefore done by one thread at a time,
and its result is let in only once it is good: a failing merge costs no other task its place.
Whoever uses weights holds a *lease*; leased weights are never taken away, pinned ones only when
they are unpinned.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..engines.network import Buffer

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(eq=False, slots=True)
class Held(Generic[K, V]):
    """Weights in memory. ``value`` is what was made; the rest is the cache's own."""

    key: K
    value: V
    size_bytes: int
    buffer: Buffer
    extra_bytes: int = 0
    """What was added to the value since."""
    leases: int = 0
    spare: bool = False
    """Whether it is the one task beyond the budget."""

    @property
    def all_bytes(self) -> int:
        """Of the value and what was added to it."""
        return self.size_bytes + self.extra_bytes


class WeightsCache(Generic[K, V]):
    """A cache of values that live in buffers; every method may be called from any thread.

    Args:
        budget_bytes: For everything that is held, apart from one value more.
        shrink: Takes away what was added to a value that is not leased. Does not block.
    """

    def __init__(self, budget_bytes: int, shrink: Callable[[V], None]) -> None:
        self.budget_bytes = budget_bytes
        self._shrink = shrink
        self.evictions = 0
        self._held: OrderedDict[K, Held[K, V]] = OrderedDict()  # least recently used first
        self._leaving: set[Held[K, V]] = set()  # dropped, and still leased
        self._free: list[Buffer] = []
        self._in_making = 0  # bytes
        self._pinned: set[K] = set()
        self._making: set[K] = set()
        self._spare_taken = False
        self._changed = threading.Condition()

    @property
    def held_bytes(self) -> int:
        """Of all values in memory."""
        with self._changed:
            return sum(held.all_bytes for held in (*self._held.values(), *self._leaving))

    @property
    def allocated_bytes(self) -> int:
        """Of all buffers: in use, kept for the next merge, or being merged into."""
        with self._changed:
            return self._allocated()

    def holds(self, key: K) -> bool:
        """Whether the next lease needs no merge."""
        with self._changed:
            return key in self._held

    def sizes(self) -> dict[K, int]:
        """Bytes of everything that is held."""
        with self._changed:
            return {key: held.all_bytes for key, held in self._held.items()}

    def lease_held(self, key: K) -> Held[K, V] | None:
        """A lease of what is in memory to stay; None if it is not.

        What lies beyond the budget is leased by ``lease`` alone: whoever waits for its place comes
        first.
        """
        with self._changed:
            held = self._held.get(key)
            return None if held is None or held.spare else self._lease(key)

    def lease(
        self,
        key: K,
        buffer_bytes: int,
        size_bytes: int,
        prepare: Callable[[], Callable[[Buffer], V]],
    ) -> Held[K, V]:
        """A lease of a value; made now if it is not in memory, by one of those who ask for it.

        Args:
            key: What it is known by.
            buffer_bytes: Size of the buffer that it needs.
            size_bytes: Of the whole value, the buffer included.
            prepare: Reads what is needed, without a buffer, and gives the function that makes the
                value in one; what either raises is raised here, and nothing else changes.
        """
        with self._changed:
            while True:
                if (held := self._lease(key)) is not None:
                    return held
                if key not in self._making:
                    break
                self._changed.wait()
            self._making.add(key)
        try:
            make = prepare()
            buffer = self._take_buffer(buffer_bytes)
            try:
                value = make(buffer)
            except BaseException:
                self._give_back(buffer)
                raise
            return self._admit(Held(key, value, size_bytes, buffer, leases=1, spare=True))
        finally:
            with self._changed:
                self._making.discard(key)
                self._changed.notify_all()

    def release(self, held: Held[K, V]) -> None:
        """End a lease."""
        with self._changed:
            held.leases -= 1
            if held.leases:
                return
            if held in self._leaving:
                self._leaving.remove(held)
                self._forget(held)
            elif held.spare and not self._make_room(held):
                del self._held[held.key]
                self._forget(held)
            self._changed.notify_all()

    def grow(self, held: Held[K, V], extra_bytes: int) -> bool:
        """Count something more for a leased value, if that fits beside all that is there.

        It is given up, by ``shrink``, when others need the room.
        """
        with self._changed:
            if held.spare or held in self._leaving:
                return False
            there = (*self._held.values(), *self._leaving)
            if sum(one.all_bytes for one in there) + extra_bytes > self.budget_bytes:
                return False
            held.extra_bytes = extra_bytes
            self._trim()
            return True

    def pin(self, key: K) -> None:
        """Never take this away, once it is in memory."""
        with self._changed:
            self._pinned.add(key)

    def unpin(self, key: K) -> None:
        """Let it be taken away again when others need its place."""
        with self._changed:
            self._pinned.discard(key)

    def is_pinned(self, key: K) -> bool:
        """Whether it stays once it is in memory."""
        with self._changed:
            return key in self._pinned

    def drop(self, key: K) -> None:
        """Take it out of memory: now, or when its last lease ends; the next lease makes it anew."""
        with self._changed:
            self._pinned.discard(key)
            held = self._held.pop(key, None)
            if held is not None and held.leases:
                self._leaving.add(held)
            elif held is not None:
                self._forget(held)
            self._changed.notify_all()

    def _lease(self, key: K) -> Held[K, V] | None:
        held = self._held.get(key)
        if held is not None:
            held.leases += 1
            self._held.move_to_end(key)
        return held

    def _take_buffer(self, size_bytes: int) -> Buffer:
        """The one buffer that may lie beyond the budget, once nothing else does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._spare_taken)
            self._spare_taken = True
            self._in_making = size_bytes
            for index, buffer in enumerate(self._free):
                if buffer.size_bytes == size_bytes:
                    return self._free.pop(index)
            while self._free and self._allocated() - size_bytes > self.budget_bytes:
                del self._free[0]
        return Buffer(size_bytes)

    def _give_back(self, buffer: Buffer) -> None:
        with self._changed:
            self._free.append(buffer)
            self._spare_taken = False
            self._in_making = 0
            self._changed.notify_all()

    def _admit(self, held: Held[K, V]) -> Held[K, V]:
        with self._changed:
            self._in_making = 0
            self._held[held.key] = held
            self._make_room(held)
            return held

    def _make_room(self, spare: Held[K, V]) -> bool:
        """Let the value beyond the budget in, if what is idle can make room for it."""
        holding = (*self._held.values(), *self._leaving)
        excess = sum(held.all_bytes for held in holding if not held.spare)
        excess += spare.size_bytes - self.budget_bytes
        idle = [held for held in self._held.values() if not (held.leases or held.spare)]
        smaller, victims = [], []
        for held in idle:  # what only makes a task faster goes before any task does
            if excess > 0 and held.extra_bytes:
                smaller.append(held)
                excess -= held.extra_bytes
        for held in idle:
            if excess > 0 and held.key not in self._pinned:
                victims.append(held)
                excess -= held.size_bytes
        if excess > 0:
            return False
        for held in smaller:
            held.extra_bytes = 0
            self._shrink(held.value)
        for victim in victims:
            del self._held[victim.key]
            self._forget(victim)
            self.evictions += 1
        spare.spare = False
        self._spare_taken = False
        self._trim()
        self._changed.notify_all()
        return True

    def _forget(self, held: Held[K, V]) -> None:
        """Keep the buffer of a value that nobody uses or finds any more."""
        self._free.append(held.buffer)
        if held.spare:
            self._spare_taken = False

    def _trim(self) -> None:
        """Keep no more unused buffers than one beyond the budget."""
        while self._free:
            largest = max(buffer.size_bytes for buffer in self._free)
            if self._allocated() - largest <= self.budget_bytes:
                break
            del self._free[0]

    def _allocated(self) -> int:
        held = sum(held.all_bytes for held in (*self._held.values(), *self._leaving))
        return held + self._in_making + sum(buffer.size_bytes for buffer in self._free)
