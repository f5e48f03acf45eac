"""What many tasks cost on many machines, with and without routing to those who hold a task.

A simulation: requests of tasks drawn by a Zipf law go to machines that each hold as many tasks as
their budget does, least recently used out. Nothing here is measured; sizes and rates are options.

    python benchmarks/scale_simulation.py --tasks 10000 --machines 20 --held 500
"""

from __future__ import annotations

import argparse
from collections import OrderedDict

import numpy as np


def hit_rate(draws: np.ndarray, machines: np.ndarray, n_machines: int, held: int) -> float:
    """Share of the second half of the requests whose task was held where they went.

    Args:
        draws: Task of each request.
        machines: Where each went.
        n_machines: How many there are.
        held: Tasks that one holds at most.
    """
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(n_machines)]
    hits, warm = 0, len(draws) // 2
    for index, (task, machine) in enumerate(zip(draws.tolist(), machines.tolist(), strict=True)):
        cache = caches[machine]
        if task in cache:
            cache.move_to_end(task)
            hits += index >= warm
            continue
        cache[task] = None
        if len(cache) > held:
            cache.popitem(last=False)
    return hits / (len(draws) - warm)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--machines", type=int, default=20)
    parser.add_argument("--held", type=int, default=100, help="tasks in memory of one machine")
    parser.add_argument("--task-mb", type=float, default=22.0, help="merged weights of one task")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second, in all")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    print(
        f"{asked.tasks} tasks, {asked.machines} machines, {asked.held} tasks held by each: "
        f"{asked.held * asked.task_mb / 1e3:.1f} GB of weights a machine, {asked.rate:g} requests/s"
    )
    print("| Zipf exponent | Routing | Hit rate | Swaps/s of a machine, mean |")
    print("|---|---|---|---|")
    home = rng.permutation(asked.tasks) % asked.machines
    for exponent in (0.8, 1.0, 1.2):
        weights = np.arange(1, asked.tasks + 1) ** -exponent
        draws = rng.choice(asked.tasks, asked.requests, p=weights / weights.sum())
        for name, machines in (
            ("by task", home[draws]),
            ("at random", rng.integers(0, asked.machines, asked.requests)),
        ):
            hits = hit_rate(draws, machines, asked.machines, asked.held)
            swaps = (1 - hits) * asked.rate / asked.machines
            print(f"| {exponent} | {name} | {hits:.3f} | {swaps:.2f} |")


if __name__ == "__main__":
    main()
