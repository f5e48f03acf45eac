"""One process beside a front with replicas: requests a second, waits, affinity, swaps, memory.

Three servers run at once on this machine, and clients over HTTP ask them in turn: one process, a
front with one replica (what the way through Ray costs), and a front with two. *Hot*: few tasks,
whose weights all stay in memory. *Cold*: tasks in turn, more than the budget of a replica holds, so
that an answer needs a merge unless its task came to a replica that has it::

    python benchmarks/scale_out.py --backbone vit_tiny_patch16_224
    python benchmarks/scale_out.py --clients 16 --seconds 20
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import tritonclient.http as triton
from serving_store import export_first, fill_store, make_backbone

SERVERS: dict[str, tuple[str, ...]] = {
    "one process": (),
    "front, 1 replica": ("--replicas", "1", "--replica-cpus", "0.5"),
    "front, 2 replicas": ("--replicas", "2", "--replica-cpus", "0.5"),
}


@dataclass(frozen=True)
class Running:
    """A server."""

    address: str
    pid: int

    def replica_pids(self) -> list[int]:
        """Of its replicas; of itself if it has none."""
        below = list(_below(self.pid))
        return [pid for pid in below if "ServeReplica" in _command(pid)] or [self.pid]

    def metric(self, name: str) -> float:
        """A number that it tells operators."""
        with urllib.request.urlopen(f"http://{self.address}/metrics") as response:
            text = response.read().decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def running(store: Path, *options: str) -> Iterator[Running]:
    """A server until the block ends."""
    command = (sys.executable, "-m", "glora_deploy.serving", "--store", str(store), "--port", "0")
    process = subprocess.Popen(
        [*command, "--threads", "1", "--no-log-requests", "--no-watch", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        yield Running(first.split()[0].removeprefix("http://"), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


def load(server: Running, tasks: list[str], n_clients: int, seconds: float) -> list[float]:
    """Seconds of every request that clients could make, each going through the tasks in turn."""
    end, waits = time.perf_counter() + seconds, []
    with triton.InferenceServerClient(server.address) as client:
        shape = client.get_model_metadata(tasks[0])["inputs"][0]["shape"][1:]
    image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)

    def ask(index: int) -> None:
        with triton.InferenceServerClient(server.address, network_timeout=600) as client:
            turn = index
            while (started := time.perf_counter()) < end:
                sent = triton.InferInput("image", list(image.shape), "FP32")
                sent.set_data_from_numpy(image)
                client.infer(tasks[turn % len(tasks)], [sent])
                waits.append(time.perf_counter() - started)
                turn += n_clients

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits


def resident_mb(pid: int) -> float:
    """Memory of a process that is its own, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE)
    return sum(map(int, private)) / 1e3


def _below(pid: int) -> Iterator[int]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from _below(int(child))


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--tasks", type=int, default=12, help="that are asked for when cold")
    parser.add_argument("--hot-tasks", type=int, default=2)
    parser.add_argument("--held", type=int, default=4, help="tasks that a budget holds")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        root = Path(scratch) / "artifacts"
        backbone = make_backbone(arguments.backbone)
        store = fill_store(root, backbone, arguments.tasks, forms="A=lora:4 B=lora:4")
        export_first(store)
        merged_mb = sum(t.numel() * t.element_size() for t in backbone.tensors.values()) / 1e6
        delta_mb = (root / "t0" / "v1" / "adapter.safetensors").stat().st_size / 1e6
        budget = f"{merged_mb * (arguments.held + 0.5):.0f}MB"
        servers = {
            name: stack.enter_context(running(root, "--memory-budget", budget, *options))
            for name, options in SERVERS.items()
        }
        names = [f"t{index}" for index in range(arguments.tasks)]
        before = {n: median(map(resident_mb, s.replica_pids())) for n, s in servers.items()}
        waits: dict[tuple[str, str], list[list[float]]] = {}
        for _ in range(arguments.rounds):
            for kind, tasks in (("hot", names[: arguments.hot_tasks]), ("cold", names)):
                for name, server in servers.items():
                    found = load(server, tasks, arguments.clients, arguments.seconds)
                    waits.setdefault((kind, name), []).append(found)
        swaps = servers["one process"].metric("glora_swaps_total")
        after = {n: median(map(resident_mb, s.replica_pids())) for n, s in servers.items()}
    n_cold = sum(map(len, waits["cold", "one process"]))
    sizes = f"{merged_mb:.1f} MB merged, {delta_mb:.2f} MB a delta, budget {budget}"
    print(f"{arguments.backbone}, {sizes}, {arguments.clients} clients")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    for kind in ("hot", "cold"):
        base = [len(each) for each in waits[kind, "one process"]]
        for name in servers:
            rounds = waits[kind, name]
            every = [wait * 1e3 for each in rounds for wait in each]
            rate = median(len(each) / arguments.seconds for each in rounds)
            ratio = median(len(e) / b for e, b in zip(rounds, base, strict=True))
            print(
                f"{kind:5}{name:20}{rate:8.1f} requests/s  {ratio:5.2f} of one process  "
                f"p50 {median(every):7.1f} ms  p99 {quantiles(every, n=100)[98]:7.1f} ms"
            )
    print(f"one process merged for {swaps / n_cold:.2f} of its cold requests")
    for name in servers:
        print(f"{name:25}{before[name]:8.0f} MB at the start, {after[name]:.0f} MB in the end")


if __name__ == "__main__":
    main()
