"""How long a server takes until it is ready, and to leave; and what is lost when it is told to.

Servers are started on stores of so many tasks of a small backbone, and of a few of a ViT-B/16; the
last of the small ones is told to leave (SIGTERM) while sixteen clients ask it::

    python benchmarks/serving_start.py --tasks 10 1000
    python benchmarks/serving_start.py --no-vit

A request that was sent before the signal and has no answer is lost. One that is refused, or finds
the port closed, is not: the client knows, and another server answers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import torch
from serving_store import SMALL, export_first, fill_store, make_backbone
from storm.clients import ask_for_ever
from storm.ledger import Ledger
from storm.ours import Ours, our_server
from storm.tasks import Tasks

N_CLIENTS = 16
ASKS_S = 2.0


class LeavingLedger(Ledger):
    """Counts what happens to requests when a server leaves."""

    told_s = float("inf")
    """When it was told to."""

    def refused(
        self, task: str, asked: str | None, sent: float, received: float, status: str, text: str
    ) -> None:
        """In words, or by a connection that is not taken; gRPC has one status for much."""
        if sent < self.told_s and "the server is leaving" not in text:
            self.problem("lost", text)
        else:
            self.count("refused" if "leaving" in text else "found it closed, or closing")

    def lost(self, task: str, sent: float, what: str) -> None:
        """A connection that is not taken is no request."""
        if sent < self.told_s and "ClientConnectorError" not in what:
            self.problem("lost", what)
        else:
            self.count("found it closed, or closing")


def seconds_to_ready(store: Path) -> float:
    """From the start of the process to the first 200 of its probe."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "glora_deploy.serving", "--store", str(store), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}/v2/health/ready") as answer:
            assert answer.status == 200
        return time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def leave_under_load(folder: Path) -> tuple[float, LeavingLedger]:
    """Seconds from SIGTERM to the end of the process, and what became of the requests."""
    ledger = LeavingLedger(refusals=())
    tasks = Tasks(folder / "artifacts", 6, ledger)
    stop = threading.Event()
    with our_server(tasks, folder) as server:
        clients = threading.Thread(
            target=lambda: asyncio.run(
                ask_for_ever(server, tasks, ledger, n_clients=N_CLIENTS, until=stop.is_set)
            )
        )
        clients.start()
        time.sleep(ASKS_S)
        start, ledger.told_s = time.perf_counter(), time.monotonic()
        os.kill(server.pids[0], signal.SIGTERM)
        ended = wait_for_end(server)
        stop.set()
        clients.join()
    return ended - start, ledger


def wait_for_end(server: Ours) -> float:
    """When the process ended; it stays a zombie until it is waited for."""
    stat = Path(f"/proc/{server.pids[0]}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--vit", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stores = {
            f"{n} tasks of a small backbone": (make_backbone(**SMALL), n) for n in arguments.tasks
        }
        if arguments.vit:
            stores["4 tasks of a ViT-B/16"] = (make_backbone(), 4)
        for number, (name, (backbone, n_tasks)) in enumerate(stores.items()):
            root = folder / f"store-{number}"
            export_first(fill_store(root, backbone, n_tasks))
            seconds_to_ready(root)  # what is compiled once for this machine lies in a cache
            print(f"ready, {name:<40}{seconds_to_ready(root):8.2f} s")
        (folder / "leaving").mkdir()
        leaves_s, ledger = leave_under_load(folder / "leaving")
    print(f"{'left after SIGTERM, under load':<47}{leaves_s:8.2f} s")
    for what, n in sorted(ledger.counts.items()):
        print(f"    {what:<43}{n:8d}")
    print(f"    {'lost':<43}{ledger.problems['lost']:8d}")
    sys.exit(1 if ledger.problems else 0)


if __name__ == "__main__":
    main()
