"""What a flood of one task costs the others: how long they wait, in batches of the flood.

One task is asked for twenty times as often as the engine can answer, each of four others by one
client that waits for its answers. The queue promises that a request of a task in memory waits for
the batch that runs and at most one batch of every task that waits when it comes::

    python benchmarks/serving_fairness.py --threads 1 --seconds 20

It ends with status 1 if the others' wait at p99 is longer than that, if one of them is refused, if
more waited than may, or if an answer of the flood came later than its deadline and one batch. A
queue that answers in the order of arrival would let everybody wait for all that waits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from statistics import quantiles

import numpy as np
from numpy.typing import NDArray
from serving_store import export_first, fill_store, make_backbone
from serving_throughput import own_rate

from glora_deploy.serving.errors import DeadlineError, OverloadedError
from glora_deploy.serving.tasks.contract import Answer, InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings

FLOODED, N_OTHERS = "t0", 4
TIMES = 20
DEADLINE_S = 2.0
THINKS_S = 0.02
TICK_S = 0.01


class Flood:
    """Requests of one task at a steady rate, whatever becomes of them."""

    def __init__(self, engine: StoreEngine, image: NDArray[np.float32], rate: float) -> None:
        self._engine, self._image, self._rate = engine, image, rate
        self.counts: Counter[str] = Counter()
        self.latest_s = 0.0
        """How long after its deadline an answer came at the most."""
        self.longest_batch_s = 0.0
        self.most_waiting = 0

    def run(self, until_s: float) -> None:
        """Send until then."""
        start, sent = time.monotonic(), 0
        while (now := time.monotonic()) < until_s:
            while sent < (now - start) * self._rate:
                sent += 1
                self._send()
            self.most_waiting = max(self.most_waiting, self._engine.usage().queued)
            time.sleep(TICK_S)

    def _send(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        request = InferRequest(task=FLOODED, images=self._image, deadline_s=deadline_s)
        try:
            self._engine.submit(request).add_done_callback(partial(self._done, deadline_s))
        except OverloadedError:
            self.counts["refused at once"] += 1

    def _done(self, deadline_s: float, future: Future[Answer]) -> None:
        if isinstance(future.exception(), DeadlineError):
            self.counts["too late"] += 1
        else:
            self.counts["answered"] += 1
            self.longest_batch_s = max(self.longest_batch_s, 1e-9 * future.result().compute_ns)
        self.latest_s = max(self.latest_s, time.monotonic() - deadline_s)


def main() -> None:
    """Measure, print, and end with status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "artifacts"
        backbone = make_backbone("vit_tiny_patch16_224")
        export_first(fill_store(root, backbone, 1 + N_OTHERS))
        settings = EngineSettings(
            threads=arguments.threads,
            watch_s=None,
            hot_after=None,
            prefetch=tuple(f"t{index}" for index in range(1 + N_OTHERS)),
        )
        with StoreEngine(root, settings) as engine:
            kept = measure(engine, settings, arguments.seconds)
    sys.exit(0 if kept else 1)


def measure(engine: StoreEngine, settings: EngineSettings, seconds: float) -> bool:
    """Flood, ask, print; whether every promise was kept."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    capacity = own_rate(engine, settings.max_batch, 3.0)
    flood = Flood(engine, image, TIMES * capacity)
    end_s = time.monotonic() + seconds
    waits: list[float] = []
    refused: list[BaseException] = []

    def client(index: int) -> None:
        while time.monotonic() < end_s:
            try:
                answer = engine.submit(InferRequest(task=f"t{index}", images=image)).result()
            except OverloadedError as error:
                refused.append(error)
            else:
                waits.append(1e-9 * answer.queue_ns)
            time.sleep(THINKS_S)

    threads = [threading.Thread(target=client, args=(1 + n,)) for n in range(N_OTHERS)]
    threads.append(threading.Thread(target=flood.run, args=(end_s,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    longest_s = flood.longest_batch_s
    p50, p99 = (quantiles(waits, n=100)[n] for n in (49, 98))
    bound_s = (2 + N_OTHERS) * longest_s
    print(f"capacity in full batches             {capacity:8.1f} images/s")
    print(f"the flood, {TIMES} times that            {TIMES * capacity:8.1f} images/s")
    for what, n in flood.counts.most_common():
        print(f"    {what:<33}{n:8d}")
    print(f"longest batch of the flood           {1e3 * longest_s:8.1f} ms")
    print(f"the others, {len(waits)} requests: wait p50    {1e3 * p50:8.1f} ms")
    print(f"    p99                              {1e3 * p99:8.1f} ms")
    print(
        f"    promised                         {1e3 * bound_s:8.1f} ms ({p99 / bound_s:.2f} of it)"
    )
    print(f"    in the order of arrival          {1e3 * settings.max_queue / capacity:8.1f} ms")
    print(f"    refused                          {len(refused):8d}")
    print(f"most that waited, of {settings.max_queue} allowed      {flood.most_waiting:8d}")
    print(f"latest answer after its deadline     {1e3 * flood.latest_s:8.1f} ms")
    return (
        p99 <= bound_s
        and not refused
        and flood.most_waiting <= settings.max_queue
        and flood.latest_s <= longest_s + 2 * TICK_S
    )


if __name__ == "__main__":
    main()
