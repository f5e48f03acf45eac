"""Whose turn it is: batches of one queue, turn by turn, none starved, none beyond its bounds."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from glora_deploy.serving.errors import DeadlineError, OverloadedError, UnavailableError
from glora_deploy.serving.tasks import scheduler as scheduler_module
from glora_deploy.serving.tasks.contract import Answer, InferRequest
from glora_deploy.serving.tasks.scheduler import Batch, Scheduler

LONG_AGO = 0.0


class Bench:
    """A scheduler over tasks whose weights are in memory, unless they are named as cold."""

    def __init__(
        self,
        *,
        max_batch: int = 4,
        max_queue: int = 1000,
        cold: str = "",
        delay_s: float = 0,
        pools: Mapping[str, int] | None = None,
    ) -> None:
        self.cold = set(cold)
        self.leases: list[str] = []
        self.scheduler: Scheduler[str, str] = Scheduler(
            max_batch=max_batch,
            max_delay_s=delay_s,
            max_queue=max_queue,
            lease_held=self.lease_held,
            release=self.leases.remove,
            pool=(pools or {}).get,
        )

    def lease_held(self, key: str) -> str | None:
        if key in self.cold:
            return None
        self.leases.append(key)
        return key

    def add(
        self, key: str, n: int = 1, *, priority: int = 0, deadline_s: float | None = None
    ) -> Future[Answer]:
        images = np.zeros((n, 3, 1, 1), np.float32)
        request = InferRequest(task=key, images=images, priority=priority, deadline_s=deadline_s)
        future: Future[Answer] = Future()
        self.scheduler.admit(key, request, future)
        return future

    def take(self) -> Batch[str, str]:
        batch = self.scheduler.take()
        assert batch is not None
        self.leases.remove(batch.lease)
        return batch

    def take_keys(self, n: int) -> str:
        return "".join(self.take().key for _ in range(n))


def test_a_batch_holds_one_queue_in_order_and_no_more_than_fits() -> None:
    bench = Bench(max_batch=4)
    futures = [bench.add(key, n) for key, n in (("a", 2), ("b", 1), ("a", 1), ("a", 2), ("a", 1))]
    batches = [bench.take() for _ in range(3)]
    assert [(batch.key, batch.n_images) for batch in batches] == [("a", 3), ("b", 1), ("a", 3)]
    taken = [pending.future for batch in batches for pending in batch.requests]
    assert taken == [futures[index] for index in (0, 2, 1, 3, 4)]
    assert bench.leases == []


def test_tasks_take_turns_however_much_one_of_them_sends() -> None:
    bench = Bench(max_batch=1)
    for _ in range(50):
        bench.add("f")
    assert bench.take_keys(2) == "ff"
    for key in "abc":
        bench.add(key)
    bench.add("a")
    assert bench.take_keys(9) == "fabcfafff"


@given(st.lists(st.sampled_from("fffffabcde"), max_size=60), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_a_task_waits_for_at_most_one_batch_of_every_task_that_waits(
    arrivals: list[str], between: int
) -> None:
    bench = Bench(max_batch=2)
    waiting: dict[str, int] = {}  # key: batches that may still go before it
    left: dict[str, int] = {}
    for _ in range(40):
        bench.add("f")
    left["f"], waiting["f"] = 40, 0

    def take() -> None:
        key = bench.take().key
        left[key] -= min(2, left[key])
        for other in waiting:
            if other != key:
                waiting[other] -= 1
                assert waiting[other] >= 0, other
        del waiting[key]
        if left[key]:
            waiting[key] = len(waiting)

    for key in arrivals:
        bench.add(key)
        left[key] = left.get(key, 0) + 1
        waiting.setdefault(key, len(waiting))
        for _ in range(between):
            if waiting:
                take()
    while waiting:
        take()
    assert bench.scheduler.n_images == 0


def test_queues_of_one_pool_share_a_batch_in_their_turns() -> None:
    bench = Bench(max_batch=5, pools={"m": 1, "n": 1, "o": 1, "p": 2}, delay_s=1e6)
    for key, n in (("m", 1), ("a", 2), ("n", 2), ("p", 1), ("o", 4), ("m", 1)):
        bench.add(key, n)
    batch = bench.take()
    assert [(part.key, part.n_images) for part in (batch, *batch.others)] == [("m", 2), ("n", 2)]
    bench.leases.remove("n")
    bench.add("m", 1)
    batch = bench.take()
    assert [(part.key, part.n_images) for part in (batch, *batch.others)] == [("o", 4), ("m", 1)]
    bench.leases.remove("m")
    assert bench.scheduler.n_images == 3  # those who share nothing wait until they are full


def test_a_queue_without_weights_keeps_its_place_and_holds_nobody_up() -> None:
    bench = Bench(max_batch=1, cold="xy")
    bench.add("x")
    for _ in range(3):
        bench.add("a")
    bench.add("y")
    assert bench.take_keys(1) == "a"
    assert bench.scheduler.next_wanted() == "x"
    assert bench.scheduler.next_wanted() == "y"
    bench.leases += "xy"
    bench.scheduler.provide("y", "y", merged=True)
    bench.scheduler.provide("x", "x", merged=True)
    assert bench.take_keys(4) == "xyaa"


def test_weights_that_nobody_waits_for_any_more_are_let_go() -> None:
    bench = Bench(cold="x")
    future = bench.add("x")
    assert bench.scheduler.next_wanted() == "x"
    assert future.cancel()
    bench.leases.append("x")
    bench.scheduler.provide("x", "x", merged=True)
    assert bench.leases == []


def test_weights_that_cannot_be_had_fail_all_who_wait_for_them() -> None:
    bench = Bench(cold="x")
    doomed, kept = [bench.add("x"), bench.add("x")], bench.add("a")
    assert bench.scheduler.next_wanted() == "x"
    bench.scheduler.refuse("x", UnavailableError("x is broken"))
    for future in doomed:
        with pytest.raises(UnavailableError, match="x is broken"):
            future.result()
    assert bench.take().requests[0].future is kept


def test_the_urgent_goes_first_within_a_task_and_between_tasks() -> None:
    bench = Bench(max_batch=1)
    for key, priority in (("a", 3), ("a", 0), ("b", 0), ("c", 1), ("a", 1)):
        bench.add(key, priority=priority)
    batches = [bench.take() for _ in range(4)]
    order = [(batch.key, batch.requests[0].request.priority) for batch in batches]
    assert order == [("a", 1), ("c", 1), ("b", 0), ("a", 0)]
    assert bench.take().requests[0].request.priority == 3


def test_a_cancelled_request_is_in_no_batch_and_frees_its_place() -> None:
    bench = Bench(max_batch=4, max_queue=4)
    first, second = bench.add("a"), bench.add("a")
    with pytest.raises(OverloadedError, match=r"^the queue must hold at most 4 images, .* got 2"):
        bench.add("a")
    assert second.cancel()
    bench.add("a")
    batch = bench.take()
    assert batch.n_images == 2
    assert second not in [pending.future for pending in batch.requests]
    assert not first.cancel()  # its batch is formed


def test_a_flood_leaves_room_for_others_to_wait() -> None:
    bench = Bench(max_batch=4, max_queue=16)

    def flood(key: str) -> int:
        for n in range(100):
            try:
                bench.add(key)
            except OverloadedError:
                return n
        return 100

    assert [flood(key) for key in "fgh"] == [8, 4, 2]
    assert [flood(key) for key in "abc"] == [1, 1, 0]  # what is left goes to who comes first
    with pytest.raises(OverloadedError, match="got 16 that wait, 0 of them of d, and 1 more"):
        bench.add("d")
    assert bench.take().key == "f"
    bench.add("d")


def test_a_request_as_large_as_the_queue_is_taken_where_nothing_waits() -> None:
    bench = Bench(max_batch=4, max_queue=4)
    bench.add("a", 4)
    with pytest.raises(OverloadedError):
        bench.add("b")
    assert bench.take().n_images == 4


def test_cancelling_all_of_a_queue_lets_its_weights_go() -> None:
    bench = Bench()
    future = bench.add("a")
    assert bench.leases == ["a"]
    assert future.cancel()
    assert bench.leases == []
    assert bench.scheduler.n_images == 0


def test_a_request_whose_deadline_passed_fails_and_the_others_go_on() -> None:
    bench = Bench()
    late, kept = bench.add("a", deadline_s=LONG_AGO), bench.add("a")
    batch = bench.take()
    assert [pending.future for pending in batch.requests] == [kept]
    with pytest.raises(DeadlineError, match=r"^a: the deadline passed in the queue$"):
        late.result()


class Clock:
    """Time that passes only by being looked at, a millisecond each time."""

    def __init__(self) -> None:
        self._ms = itertools.count()

    def now_ns(self) -> int:
        return 1_000_000 * next(self._ms)

    def now_s(self) -> float:
        return next(self._ms) / 1e3


def test_a_deadline_passes_also_while_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    names = {"monotonic_ns": clock.now_ns, "monotonic": clock.now_s}
    monkeypatch.setattr(scheduler_module, "time", SimpleNamespace(**names))
    bench = Bench(cold="x")
    with ThreadPoolExecutor(1) as pool:
        late = bench.add("x", deadline_s=0.05)
        taken = pool.submit(bench.scheduler.take)
        with pytest.raises(DeadlineError):
            late.result()
        bench.scheduler.close()
        assert taken.result() is None


def test_a_batch_that_is_not_full_waits_for_more() -> None:
    bench = Bench(max_batch=3, delay_s=1e6)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(bench.take)
        for _ in range(3):
            bench.add("a")
        assert taken.result().n_images == 3
        bench.add("a")
        taken = pool.submit(bench.take)
        bench.scheduler.close()  # nothing more can come
        assert taken.result().n_images == 1


def test_a_closed_scheduler_hands_out_what_waits_and_then_nothing() -> None:
    bench = Bench(max_batch=1, cold="x")
    bench.add("x")
    bench.add("a")
    bench.scheduler.close()
    assert bench.take().key == "a"
    assert bench.scheduler.next_wanted() == "x"
    bench.leases.append("x")
    bench.scheduler.provide("x", "x", merged=True)
    assert bench.take().key == "x"
    assert bench.scheduler.take() is None
    assert bench.scheduler.next_wanted() is None


def test_what_still_waits_at_the_end_fails() -> None:
    bench = Bench(cold="x")
    futures = [bench.add("x"), bench.add("a")]
    bench.scheduler.fail_all(UnavailableError("the server is leaving"))
    for future in futures:
        with pytest.raises(UnavailableError, match="leaving"):
            future.result()
    assert bench.leases == []
    assert bench.scheduler.n_images == 0


def test_many_threads_lose_and_double_nothing() -> None:
    bench = Bench(max_batch=5, cold="xyz")
    served: list[Future[Answer]] = []
    lock = threading.Lock()

    def get_weights() -> None:
        while (key := bench.scheduler.next_wanted()) is not None:
            bench.leases.append(key)
            bench.scheduler.provide(key, key, merged=True)

    def serve() -> None:
        while (batch := bench.scheduler.take()) is not None:
            with lock:
                bench.leases.remove(batch.lease)
                served.extend(pending.future for pending in batch.requests)

    def ask(seed: int) -> list[Future[Answer]]:
        keys = itertools.islice(itertools.cycle("axbycz"), seed, seed + 60)
        futures = [bench.add(key, 1 + index % 3) for index, key in enumerate(keys)]
        return [future for index, future in enumerate(futures) if index % 7 or not future.cancel()]

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(get_weights), pool.submit(serve), pool.submit(serve)]
        asked = [pool.submit(ask, seed) for seed in range(4)]
        kept = [future for one in asked for future in one.result()]
        bench.scheduler.close()
        for worker in workers:
            worker.result()
    assert len(served) == len(set(map(id, served)))
    assert set(map(id, served)) == set(map(id, kept))
    assert bench.leases == []
