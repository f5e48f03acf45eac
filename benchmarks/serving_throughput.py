"""Images per second of many clients on many tasks, beside the engine's own full batches.

Clients are threads that send one image and wait for its answer, each to one of the tasks in turn.
The yardstick is the same network on full batches of one task, without queue or swap::

    python benchmarks/serving_throughput.py --threads 2 --clients 16 --tasks 8
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
from serving_store import export_first, fill_store, make_backbone

from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings


def own_rate(engine: StoreEngine, batch_size: int, seconds: float) -> float:
    """Images per second of batches that are there at once."""
    version, _ = engine._live.find("t0", None)
    lease, _ = engine._weights.lease(version)
    height, width = version.about.input_shape[1:]
    images = np.random.default_rng(0).standard_normal((batch_size, 3, height, width), np.float32)
    weights = lease.value
    n, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        weights.network.run(weights.bound, images)
        n += batch_size
    engine._weights.cache.release(lease)
    return n / elapsed


def clients_rate(engine: StoreEngine, n_clients: int, n_tasks: int, seconds: float) -> float:
    """Images per second that all clients together are answered."""
    shape = engine.describe("t0").input_shape
    image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    end = time.perf_counter() + seconds
    counts = [0] * n_clients

    def client(index: int) -> None:
        task = f"t{index % n_tasks}"
        while time.perf_counter() < end:
            engine.submit(InferRequest(task=task, images=image)).result()
            counts[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(n_clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    parser.add_argument("--forms", default="A=lora:4 B=lora:4", help="of every layer")
    parser.add_argument("--store", type=Path, help="made here, or used if it is there")
    arguments = parser.parse_args()
    n_clients, n_tasks = arguments.clients, arguments.tasks
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.store or Path(scratch) / "artifacts"
        if not root.exists():
            export_first(fill_store(root, make_backbone(), n_tasks, forms=arguments.forms))
        settings = EngineSettings(
            threads=arguments.threads,
            watch_s=None,
            hot_after=None,
            memory_budget_bytes=16 * 2**30,
            prefetch=tuple(f"t{index}" for index in range(n_tasks)),
        )
        # What clients who wait for their answers can fill, of each task.
        batch_size = max(1, n_clients // n_tasks)
        with StoreEngine(root, settings) as engine:
            own, clients = [], []
            for _ in range(arguments.rounds):
                own.append(own_rate(engine, batch_size, arguments.seconds))
                clients.append(clients_rate(engine, n_clients, n_tasks, arguments.seconds))
            sizes = {
                batch.batch_size: batch.infer.count
                for counts in engine.statistics("t0")
                for batch in counts.batches
            }
    load = os.getloadavg()[0]
    print(f"{arguments.threads} threads, {arguments.rounds} rounds, load average {load:.1f}")
    print(f"engine alone, batches of {batch_size:<4}{median(own):8.2f} images/s")
    print(f"{n_clients} clients, {n_tasks} tasks      {median(clients):8.2f} images/s")
    print(f"ratio {median(c / o for c, o in zip(clients, own, strict=True)):.3f}")
    print(f"batches of t0 by size: {sizes}")


if __name__ == "__main__":
    main()
