"""What a swap costs a server on a GPU: ViT-B/16 of random weights in PyTorch, float32.

::

    python benchmarks/serving_swap_gpu.py

The network is captured once; a swap overwrites its weights in place, from the GPU's own memory if
the task is in the cache, else merged on the CPU and sent there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from serving_store import fill_store, make_backbone

from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)

    def settings(budget_bytes: int) -> EngineSettings:
        return EngineSettings(
            backend="torch", device="cuda", watch_s=None, memory_budget_bytes=budget_bytes
        )

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "artifacts"
        fill_store(root, make_backbone(), 3)
        with (
            StoreEngine(root, settings(8 * 2**30)) as large,
            StoreEngine(root, settings(500 * 2**20)) as small,
        ):

            def answer(engine: StoreEngine, *tasks: str) -> Callable[[], object]:
                order = list(tasks)

                def run() -> None:
                    order.append(order.pop(0))
                    engine.submit(InferRequest(task=order[0], images=image)).result()

                return run

            variants = {
                "answer, same task as before": answer(large, "t0"),
                "answer after a swap to a cached task": answer(large, "t1", "t2"),
                "answer after a swap to a task not in memory": answer(small, "t1", "t2"),
            }
            times: dict[str, list[float]] = {name: [] for name in variants}
            for n in range(3 + arguments.rounds):
                for name, run in variants.items():
                    if name == "answer, same task as before":
                        run()  # the variant before may have left another task's weights
                    start = time.perf_counter()
                    run()
                    if n >= 3:
                        times[name].append(1e3 * (time.perf_counter() - start))
    print(torch.cuda.get_device_name())
    for name, values in times.items():
        print(f"{name:<48}{median(values):8.2f} ms, least {min(values):8.2f}")


if __name__ == "__main__":
    main()
