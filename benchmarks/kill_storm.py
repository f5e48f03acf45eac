"""Kill the server, and whoever writes to its store, again and again: what comes back must be right.

In each round a server starts, sixteen clients ask it, a process of its own publishes one version
after another, and both are ended by SIGKILL at a moment of chance::

    python benchmarks/kill_storm.py --times 100
    python benchmarks/kill_storm.py --times 5 --json

Every answer is compared with what the version that it names computes; after the kill clients may
see a connection end, and nothing else. The store must verify, and the next server must answer for
every task with what the store calls current. It ends with status 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tritonclient.http as triton_http
from storm.clients import ask_for_ever, to_answered
from storm.ledger import Answered, Ledger
from storm.ours import Ours, our_server
from storm.tasks import Tasks

N_CLIENTS = 16
LONGEST_S = 1.5
"""From the first request to the kill."""
KEPT = 3
"""Versions of a task from one round to the next."""

WRITER = """
import sys
import numpy as np
from glora_deploy.store.store import ArtifactStore

store = ArtifactStore.open(sys.argv[1])
rng = np.random.default_rng(int(sys.argv[2]))
base = store.get("t0")
tensors = dict(np.load(sys.argv[4]))  # not those of base, which was drawn around them
print("writes", flush=True)
while True:
    changed = {
        name: (value + rng.normal(0, 0.3, value.shape)).astype(value.dtype)
        for name, value in tensors.items()
    }
    store.put(f"t{rng.integers(int(sys.argv[3]))}", changed, base.manifest)
"""


@dataclass
class KillLedger(Ledger):
    """Judges at the end of a round, when it is known what was written; losses are in order then."""

    killed: bool = False
    waiting: list[Answered] = field(default_factory=list)

    def answered(self, answer: Answered) -> None:
        """Keep it until the store can be read."""
        self.waiting.append(answer)

    def lost(self, task: str, sent: float, what: str) -> None:
        """As the server was killed, or a problem."""
        if self.killed:
            self.count("connections that ended with the server")
        else:
            super().lost(task, sent, what)

    def refused(
        self, task: str, asked: str | None, sent: float, received: float, status: str, text: str
    ) -> None:
        """Over gRPC a connection that ends is a status."""
        if self.killed and status == "StatusCode.UNAVAILABLE":
            self.lost(task, sent, text)
        else:
            super().refused(task, asked, sent, received, status, text)

    def judge(self) -> None:
        """Compare what was answered with what is known by now."""
        for answer in self.waiting:
            super().answered(answer)
        self.waiting.clear()


def main() -> None:
    """Run, print what was counted, and end with status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ledger = KillLedger(refusals=Ours.refusals)
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tasks = Tasks(folder / "artifacts", asked.tasks, ledger, seed=asked.seed)
        rng = random.Random(asked.seed)
        for _ in range(asked.times):
            starts.append(kill_once(tasks, folder, ledger, rng))
        start = time.monotonic()
        with our_server(tasks, folder) as server:
            starts.append(time.monotonic() - start)
            require_current(server, tasks, ledger)
        ledger.judge()
    found = {
        "kills": asked.times,
        "seconds to start, median": round(median(starts), 2),
        "counts": dict(sorted(ledger.counts.items())),
        "problems": dict(ledger.problems),
        "examples": ledger.examples,
    }
    print(json.dumps(found) if asked.json else shown(found))
    sys.exit(1 if ledger.problems else 0)


def kill_once(tasks: Tasks, folder: Path, ledger: KillLedger, rng: random.Random) -> float:
    """Start, ask, write, kill, and read what is left; seconds until the server took requests."""
    ledger.killed = False
    start = time.monotonic()
    with our_server(tasks, folder, may_be_killed=True) as server:
        took_s = time.monotonic() - start
        require_current(server, tasks, ledger)
        stop = threading.Event()
        clients = threading.Thread(
            target=lambda: asyncio.run(
                ask_for_ever(server, tasks, ledger, n_clients=N_CLIENTS, until=stop.is_set)
            )
        )
        clients.start()
        writer = start_writer(tasks, rng)
        ends = [(rng.uniform(0.1, LONGEST_S), who) for who in ("server", "writer")]
        since = time.monotonic()
        for after_s, who in sorted(ends):
            time.sleep(max(0.0, since + after_s - time.monotonic()))
            if who == "server":
                ledger.killed = True
                os.kill(server.pids[0], signal.SIGKILL)
                stop.set()
            else:
                writer.kill()
            ledger.count(f"kills of the {who}")
        clients.join()
        writer.wait()
    learn(tasks, ledger)
    ledger.judge()
    tidy(tasks)
    return took_s


def start_writer(tasks: Tasks, rng: random.Random) -> subprocess.Popen[str]:
    """A process that publishes without end, and has begun to."""
    command = [
        *(sys.executable, "-c", WRITER, str(tasks.store.root)),
        *(str(rng.randrange(1 << 30)), str(len(tasks.names)), str(tasks.origin)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def learn(tasks: Tasks, ledger: KillLedger) -> None:
    """Tell the ledger of every version that was written, and require that the store is whole."""
    for finding in tasks.store.verify():
        ledger.problem("a store that is not whole", finding.problem)
    for task in tasks.names:
        for version in tasks.store.versions(task):
            if not ledger.knows(task, version):
                tasks.learn(tasks.store.get(task, version))
                ledger.may_answer(task, version, since=0.0)
                ledger.count("versions that were written")


def tidy(tasks: Tasks) -> None:
    """Remove what is old, so that a round costs what the one before did."""
    for task in tasks.names:
        current = tasks.store.current(task)
        for version in tasks.store.versions(task)[:-KEPT]:
            if version != current:
                tasks.store.remove(task, version)


def require_current(server: Ours, tasks: Tasks, ledger: KillLedger) -> None:
    """Every task is answered by the version that its store calls current."""
    with triton_http.InferenceServerClient(server.http) as client:
        for task in tasks.names:
            tensor = triton_http.InferInput("image", [*tasks.images.shape], "FP32")
            tensor.set_data_from_numpy(tasks.images)
            sent = time.monotonic()
            rows = tuple(range(len(tasks.images)))
            answer = to_answered(
                server, client.infer(task, [tensor]), task=task, asked=None, rows=rows, sent=sent
            )
            if answer.version != tasks.store.current(task):
                ledger.problem("a server that came back with another version", task)
            ledger.answered(answer)


def shown(found: dict[str, Any]) -> str:
    """What was counted, a line each."""
    lines = [f"{name:<50}{found[name]:>10}" for name in ("kills", "seconds to start, median")]
    lines += [f"{name:<50}{n:>10}" for name, n in found["counts"].items()]
    for name, n in found["problems"].items():
        lines += [f"PROBLEM: {name:<41}{n:>10}"]
        lines += [f"    {example}" for example in found["examples"].get(name, ())]
    return "\n".join([*lines, "" if found["problems"] else "no problem"])


if __name__ == "__main__":
    main()
