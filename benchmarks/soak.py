"""A storm of requests, changes and faults around a server, and what went wrong: nothing must.

Sixteen clients ask over HTTP and gRPC for tasks whose answers differ, and compare every answer with
what the version that it names computes. Meanwhile versions come, are rolled back, are altered, are
unloaded, a disk is full, the clock jumps, and other clients vanish, dawdle and send nonsense::

    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --minutes 10 --server triton  # the same around a real Triton server
    python benchmarks/soak.py --minutes 1 --json

It ends with status 1 if there was a wrong answer, a digest that is not the version's, a request
without an answer, an unexpected error, or if memory, threads or descriptors grew after the first
third. The clock jumps where libfaketime is installed (Debian's ``faketime``); a Triton server is
what ``make test-triton`` installs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from storm.changes import Changes
from storm.clients import ask_for_ever
from storm.intruders import misbehave
from storm.ledger import Ledger
from storm.ours import Ours, our_server
from storm.server import Server
from storm.tasks import Tasks
from storm.watch import Samples, watch

N_CLIENTS = 16
N_INTRUDERS = 3
JUMPS_S = (3600, -86400, 0, 400_000_000)
ALLOWED_MB = 15.0
"""Growth of memory from the second to the last third: caches that fill up, and noise."""
ALLOWED_HANDLES = 8
"""Growth of threads, and of descriptors: connections of clients that come and go."""


def main() -> None:
    """Run, print what was counted, and end with status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--server", choices=("ours", "triton"), default="ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = run(
            Path(scratch), asked.server, 60 * asked.minutes, n_tasks=asked.tasks, seed=asked.seed
        )
    if asked.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(1 if found["problems"] else 0)


def run(folder: Path, which: str, seconds: float, *, n_tasks: int, seed: int) -> dict[str, Any]:
    """One storm; what was counted, and what went wrong."""
    ledger = Ledger(refusals=())
    tasks = Tasks(folder / "artifacts", n_tasks, ledger, seed=seed)
    if which == "ours":
        with our_server(tasks, folder) as server:
            ledger.refusals = server.refusals
            return storm(server, tasks, ledger, seconds, seed=seed)
    from storm.triton import triton_on

    with triton_on(tasks, folder) as triton:
        ledger.refusals = triton.refusals
        return storm(triton, tasks, ledger, seconds, seed=seed)


def storm(
    server: Server, tasks: Tasks, ledger: Ledger, seconds: float, *, seed: int
) -> dict[str, Any]:
    """Everything at once for so long."""
    samples, failed = Samples(), list[BaseException]()
    stop = threading.Event()
    end = time.monotonic() + seconds

    def until() -> bool:
        return stop.is_set() or time.monotonic() >= end

    def guarded(work: Callable[[], object]) -> Callable[[], None]:
        def run_it() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)
                stop.set()

        return run_it

    changes = Changes(server, tasks, ledger, seed=seed)
    works: list[Callable[[], object]] = [
        lambda: asyncio.run(ask_for_ever(server, tasks, ledger, n_clients=N_CLIENTS, until=until)),
        lambda: changes.go_on(until),
        lambda: watch(lambda: server.pids, samples, until),
        *(
            (lambda number=number: misbehave(server, ledger, seed + number, until))
            for number in range(N_INTRUDERS)
        ),
    ]
    if isinstance(server, Ours):
        works.append(lambda: jump_about(server, ledger, until))
    threads = [threading.Thread(target=guarded(work)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    for line in server.log_problems():
        ledger.problem("a line of the log that must not be there", line)
    growth = judge_growth(samples, ledger)
    latencies = sorted(ledger.latencies) or [0.0, 0.0]
    return {
        "seconds": round(seconds),
        "requests a second": round(len(ledger.latencies) / seconds, 1),
        "p50 ms": round(1e3 * median(latencies), 1),
        "p99 ms": round(1e3 * quantiles(latencies, n=100)[98], 1),
        "counts": dict(sorted(ledger.counts.items())),
        "growth": growth,
        "problems": dict(ledger.problems),
        "examples": ledger.examples,
    }


def jump_about(server: Ours, ledger: Ledger, until: Callable[[], bool]) -> None:
    """Set the server's clock an hour forward, a day back, right, and a decade forward."""
    for n in range(sys.maxsize):
        wanted = JUMPS_S[n % len(JUMPS_S)]
        server.jump(wanted)
        for _ in range(30):
            if until():
                return
            time.sleep(0.1)
        if wanted and abs(server.is_ahead_s() - wanted) < 10:
            ledger.count("jumps of the clock")


def judge_growth(samples: Samples, ledger: Ledger) -> dict[str, tuple[float, float]]:
    """Medians of the second and of the last third; a problem where the latter is much more."""
    found = {}
    for name, of, allowed in (
        ("memory MB", lambda one: one.own_mb, ALLOWED_MB),
        ("threads", lambda one: one.threads, ALLOWED_HANDLES),
        ("descriptors", lambda one: one.descriptors, ALLOWED_HANDLES),
    ):
        middle, last = samples.growth(of)
        found[name] = (round(middle, 1), round(last, 1))
        if last > middle + allowed:
            ledger.problem(f"{name} that grow", f"{middle:.1f} -> {last:.1f}")
    return found


def show(found: dict[str, Any]) -> None:
    """Print what was counted, a line each."""
    for name in ("seconds", "requests a second", "p50 ms", "p99 ms"):
        print(f"{name:<50}{found[name]:>10}")
    for name, n in found["counts"].items():
        print(f"{name:<50}{n:>10}")
    for name, (middle, last) in found["growth"].items():
        print(f"{name + ', second and last third':<50}{middle:>10}{last:>10}")
    for name, n in found["problems"].items():
        print(f"PROBLEM: {name:<41}{n:>10}")
        for example in found["examples"].get(name, ()):
            print(f"    {example}")
    print("no problem" if not found["problems"] else "")


if __name__ == "__main__":
    main()
