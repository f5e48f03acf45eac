"""Batches that mix tasks, beside merged weights: where which of them wins.

ViT-B/16 of random weights, float32, all 48 linear layers adapted with A a vector and B lora of rank
4. For n images of n tasks, one each, and for n images of one task::

    python benchmarks/serving_mixed.py --threads 2 --sizes 1 4 8
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from serving_store import export_first, fill_store, make_backbone

from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings, MixedBatches
from glora_deploy.serving.tasks.task_weights import MergedWeights, MixedWeights, TaskInMemory

REST_S = 0.05


def weights_of(engine: StoreEngine, n_tasks: int) -> list[TaskInMemory]:
    """What computes the first tasks' answers, leased for as long as the engine lives."""
    versions = [engine._live.find(f"t{index}", None)[0] for index in range(n_tasks)]
    return [engine._weights.lease(version)[0].value for version in versions]


def mixed_run(values: Sequence[TaskInMemory], images: Sequence[NDArray[np.float32]]) -> object:
    """One batch of many tasks."""
    first = values[0]
    assert isinstance(first, MixedWeights)
    terms = [value.terms for value in values if isinstance(value, MixedWeights)]
    return first.network.run(list(zip(terms, images, strict=True)))


def merged_runs(values: Sequence[TaskInMemory], images: Sequence[NDArray[np.float32]]) -> None:
    """A batch for each task."""
    for value, own in zip(values, images, strict=True):
        assert isinstance(value, MergedWeights)
        value.run(own)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--store", type=Path, help="made here, or used if it is there")
    arguments = parser.parse_args()
    n_tasks = max(arguments.sizes)

    def settings(mode: MixedBatches) -> EngineSettings:
        return EngineSettings(
            threads=arguments.threads,
            watch_s=None,
            memory_budget_bytes=64 * 2**30,
            mixed_batches=mode,
        )

    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.store or Path(scratch) / "artifacts"
        if not root.exists():
            forms = "A=vector B=lora:4"
            export_first(fill_store(root, make_backbone(), n_tasks, forms=forms))
        with (
            StoreEngine(root, settings("auto")) as mixing,
            StoreEngine(root, settings("off")) as merging,
        ):
            mixed, merged = weights_of(mixing, n_tasks), weights_of(merging, n_tasks)
            variants: dict[tuple[int, str], Callable[[], object]] = {}
            for n in arguments.sizes:
                rows = np.random.default_rng(n).standard_normal((n, 3, 224, 224), np.float32)
                single = [rows[[row]] for row in range(n)]
                for name, run in {
                    "n tasks, mixed": lambda n=n, x=single: mixed_run(mixed[:n], x),
                    "n tasks, merged one by one": lambda n=n, x=single: merged_runs(merged[:n], x),
                    "one task, mixed": lambda x=rows: mixed_run(mixed[:1], [x]),
                    "one task, merged": lambda x=rows: merged_runs(merged[:1], [x]),
                }.items():
                    variants[n, name] = run
            times: dict[tuple[int, str], list[float]] = {key: [] for key in variants}
            for n_round in range(1 + arguments.rounds):
                for key, run in variants.items():
                    time.sleep(REST_S)
                    start = time.perf_counter()
                    run()
                    if n_round:
                        times[key].append(1e3 * (time.perf_counter() - start))
            bytes_each = [e.describe("t0").size_bytes for e in (mixing, merging)]
    load = os.getloadavg()[0]
    print(f"{arguments.threads} threads, {arguments.rounds} rounds, load average {load:.1f}")
    print(f"memory of a task: mixed {bytes_each[0] / 1e6:.1f} MB, merged {bytes_each[1] / 1e6:.1f}")
    print(f"{'':<36}{'ms':>10}{'to merged':>11}")
    for (n, name), values in times.items():
        yardstick = name.replace("mixed", "merged one by one" if name[0] == "n" else "merged")
        ratio = median(values) / median(times[n, yardstick])
        print(f"n={n:<4}{name:<30}{median(values):10.1f}{ratio:11.2f}")


if __name__ == "__main__":
    main()
