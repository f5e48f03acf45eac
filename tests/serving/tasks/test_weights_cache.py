"""The cache of merged weights: within its bytes, nothing in use taken, one merge for many."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from glora_deploy.serving.engines.network import Buffer
from glora_deploy.serving.tasks.weights_cache import Held, WeightsCache

SIZES = {"a": 100, "b": 100, "c": 100, "d": 250, "e": 60}
BUDGET = 300


class BadDeltaError(Exception):
    """What a delta that cannot be merged raises."""


def make_cache(budget_bytes: int) -> WeightsCache[str, str]:
    return WeightsCache(budget_bytes, lambda value: None)


def lease(cache: WeightsCache[str, str], key: str, made: list[str] | None = None) -> Held[str, str]:
    """A lease of ``key``; the buffer's first byte and the value both say whose it is."""

    def make(buffer: Buffer) -> str:
        buffer.bytes[0] = ord(key)
        if made is not None:
            made.append(key)
        return key

    return cache.lease(key, SIZES[key], SIZES[key], lambda: make)


def fail(cache: WeightsCache[str, str], key: str, *, late: bool) -> None:
    """A lease that cannot be had: the delta is bad, or what it merges to is."""

    def raise_error(buffer: Buffer | None = None) -> str:
        if buffer is not None:
            buffer.bytes[:] = 0xFF
        raise BadDeltaError

    def prepare() -> Callable[[Buffer], str]:
        return raise_error if late else raise_error(None) and raise_error

    with pytest.raises(BadDeltaError):
        cache.lease(key, SIZES[key], SIZES[key], prepare)


class CacheMachine(RuleBasedStateMachine):
    """Any sequence of leases, releases, failures, pins and drops by one thread."""

    @initialize()
    def start(self) -> None:
        self.cache = make_cache(BUDGET)
        self.leases: list[Held[str, str]] = []

    def spare_is_leased(self) -> bool:
        """Whether one more merge would have to wait, for ever with one thread."""
        return any(held.spare for held in self.leases)

    @precondition(lambda self: not self.spare_is_leased())
    @rule(key=st.sampled_from(sorted(SIZES)))
    def take(self, key: str) -> None:
        self.leases.append(lease(self.cache, key))

    @rule(key=st.sampled_from(sorted(SIZES)))
    def take_what_is_there(self, key: str) -> None:
        if (held := self.cache.lease_held(key)) is not None:
            self.leases.append(held)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.leases) - 1))
        self.cache.release(self.leases.pop(index))

    @precondition(lambda self: not self.spare_is_leased())
    @rule(key=st.sampled_from(sorted(SIZES)), late=st.booleans())
    def fail(self, key: str, late: bool) -> None:
        if not self.cache.holds(key):
            before = self.cache.sizes()
            fail(self.cache, key, late=late)
            assert self.cache.sizes() == before

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), extra=st.sampled_from([0, 40, 150]))
    def grow(self, data: st.DataObject, extra: int) -> None:
        held = data.draw(st.sampled_from(self.leases))
        before = self.cache.held_bytes - held.extra_bytes
        if self.cache.grow(held, extra):
            assert self.cache.held_bytes == before + extra <= BUDGET

    @rule(key=st.sampled_from(sorted(SIZES)), pinned=st.booleans())
    def pin(self, key: str, pinned: bool) -> None:
        (self.cache.pin if pinned else self.cache.unpin)(key)

    @rule(key=st.sampled_from(sorted(SIZES)))
    def drop(self, key: str) -> None:
        self.cache.drop(key)
        assert not self.cache.holds(key)

    @invariant()
    def leased_weights_are_whole(self) -> None:
        for held in self.leases:
            assert held.value == held.key
            assert held.buffer.bytes[0] == ord(held.key)

    @invariant()
    def no_two_values_share_a_buffer(self) -> None:
        owners = {id(held): held.buffer for held in self.leases}
        assert len({id(buffer) for buffer in owners.values()}) == len(owners)

    @invariant()
    def memory_is_within_the_budget_and_one(self) -> None:
        assert self.cache.allocated_bytes <= BUDGET + max(SIZES.values())
        beyond = sum({id(held): held.all_bytes for held in self.leases if held.spare}.values())
        assert self.cache.held_bytes - beyond <= BUDGET


CacheMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestCache = CacheMachine.TestCase


def test_the_least_recently_used_goes_first() -> None:
    cache = make_cache(BUDGET)
    for key in "abcab":
        cache.release(lease(cache, key))
    cache.release(lease(cache, "e"))
    assert cache.sizes().keys() == {"a", "b", "e"}
    assert cache.evictions == 1


def test_a_buffer_is_used_again() -> None:
    cache = make_cache(100)
    buffers = set()
    for key in "abcabcabc":
        held = lease(cache, key)
        buffers.add(id(held.buffer))
        cache.release(held)
    assert len(buffers) == 2
    assert cache.allocated_bytes == 200


def test_what_makes_a_task_faster_goes_before_any_task_does() -> None:
    shrunk: list[str] = []
    cache: WeightsCache[str, str] = WeightsCache(BUDGET, shrunk.append)
    held = lease(cache, "a")
    assert not cache.grow(held, 201)
    assert cache.grow(held, 200)
    assert cache.sizes() == {"a": 300}
    newcomer = lease(cache, "b")
    assert newcomer.spare  # what is leased keeps all it has
    cache.release(held)
    cache.release(newcomer)
    assert cache.sizes() == {"a": 100, "b": 100}
    assert shrunk == ["a"]
    assert cache.evictions == 0


def test_what_is_in_use_or_pinned_stays_and_the_newcomer_goes() -> None:
    cache = make_cache(200)
    cache.pin("a")
    cache.release(lease(cache, "a"))
    used = lease(cache, "b")
    newcomer = lease(cache, "c")
    assert newcomer.spare
    assert cache.lease_held("c") is None  # its place is for whoever waits for it
    cache.release(newcomer)
    assert cache.sizes().keys() == {"a", "b"}
    cache.release(used)
    cache.release(lease(cache, "c"))
    assert cache.sizes().keys() == {"a", "c"}


def test_a_newcomer_stays_if_room_was_made_while_it_was_used() -> None:
    cache = make_cache(100)
    used = lease(cache, "a")
    newcomer = lease(cache, "b")
    cache.release(used)
    cache.release(newcomer)
    assert cache.sizes() == {"b": 100}


def test_a_value_larger_than_the_budget_is_made_each_time() -> None:
    cache = make_cache(10)
    made: list[str] = []
    for _ in range(3):
        cache.release(lease(cache, "a", made))
    assert made == ["a"] * 3
    assert cache.sizes() == {}


def test_many_who_ask_at_once_wait_for_one_merge() -> None:
    cache = make_cache(BUDGET)
    made: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def prepare() -> Callable[[Buffer], str]:
        begun.set()
        go.wait()
        return lambda buffer: made.append("a") or "a"

    def ask() -> Held[str, str]:
        return cache.lease("a", 100, 100, prepare)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        begun.wait()
        go.set()
        leases = [one.result() for one in asked]
    assert made == ["a"]
    assert len({id(held) for held in leases}) == 1
    assert leases[0].leases == 8


def test_one_merge_at_a_time_lies_beyond_the_budget() -> None:
    cache = make_cache(0)
    inside: list[int] = []
    peaks: list[tuple[int, int]] = []

    def make(buffer: Buffer) -> str:
        inside.append(1)
        for _ in range(200):  # others get their turns
            os.sched_yield()
        peaks.append((len(inside), cache.allocated_bytes))
        inside.pop()
        return "x"

    def ask(thread: int) -> None:
        for n in range(10):
            cache.release(cache.lease(f"{thread}/{n}", 100, 100, lambda: make))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    assert set(peaks) == {(1, 100)}
    assert len(peaks) == 60


def test_those_who_wait_for_a_merge_that_fails_try_themselves() -> None:
    cache = make_cache(BUDGET)
    begun, go = threading.Event(), threading.Event()

    def prepare() -> Callable[[Buffer], str]:
        begun.set()
        go.wait()
        raise BadDeltaError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.lease, "a", 100, 100, prepare)
        begun.wait()
        second = pool.submit(lease, cache, "a")
        go.set()
        with pytest.raises(BadDeltaError):
            first.result()
        assert second.result().value == "a"


def test_a_hit_does_not_wait_for_the_merge_of_another() -> None:
    cache = make_cache(BUDGET)
    cache.release(lease(cache, "a"))
    begun, go = threading.Event(), threading.Event()

    def make(buffer: Buffer) -> str:
        begun.set()
        go.wait()
        return "b"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.lease, "b", 100, 100, lambda: make)
        begun.wait()
        assert lease(cache, "a").value == "a"
        assert cache.allocated_bytes == 200
        go.set()
        assert slow.result().value == "b"
