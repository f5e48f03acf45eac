"""Our server in a process of its own, on a store, with a clock that jumps where one can be had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from pathlib import Path

import tritonclient.http as triton_http

from glora_deploy.store.artifact import ADAPTER

from .server import TOKEN
from .tasks import Tasks

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""Debian's package ``faketime``."""
STOPS_S = 60.0


class Ours:
    """``glora serve``, told by its management calls."""

    refusals = (
        r"is not ready: (unloaded|removed from the store|being verified|replaced)",
        r"no version of it is ready",
        r"no version '\S+' of task",
        r"adapter\.safetensors: must be a file, none is here",  # removed, not yet noticed
    )
    wrongs_are_5xx = False
    watches = True

    def __init__(
        self, tasks: Tasks, http: str, grpc: str, pid: int, log: Path, clock: Path
    ) -> None:
        self.http, self.grpc, self.pids = http, grpc, (pid,)
        self._tasks, self._log, self._clock = tasks, log, clock
        self._client = triton_http.InferenceServerClient(http, network_timeout=STOPS_S)
        self._headers = {"authorization": f"Bearer {TOKEN}"}

    def asked_by(self, task: str, version: str) -> str:
        """As ``Server.asked_by``."""
        return version.removeprefix("v")

    def version_of(self, task: str, number: str) -> str:
        """As ``Server.version_of``."""
        return f"v{number}"

    def publish(self, task: str, version: str) -> None:
        """As ``Server.publish``."""
        self._tasks.store.set_current(task, version)

    def load(self, task: str, version: str | None = None) -> None:
        """As ``Server.load``."""
        query = {} if version is None else {"version": version}
        self._client.load_model(task, headers=self._headers, query_params=query)

    def unload(self, task: str) -> None:
        """As ``Server.unload``."""
        self._client.unload_model(task, headers=self._headers)

    def corrupt(self, task: str, version: str) -> None:
        """As ``Server.corrupt``."""
        path = self._tasks.store.get(task, version).path / ADAPTER
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(data)
        # The store itself would refuse.
        current = self._tasks.store.root / task / "current"
        new = current.with_name("current.new")
        new.write_text(version + "\n")
        new.replace(current)

    def mend(self, task: str, version: str, good: str) -> None:
        """As ``Server.mend``."""
        self._tasks.store.set_current(task, good)
        self._tasks.store.remove(task, version)

    def forget(self, task: str, version: str) -> None:
        """As ``Server.forget``."""
        self._tasks.store.remove(task, version)

    def jump(self, seconds: int) -> None:
        """Set the server's clock on the wall so far forward or back, if that can be done."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._clock)

    def is_ahead_s(self) -> float:
        """Seconds that the server's clock is ahead, as its answers tell."""
        connection = HTTPConnection(self.http, timeout=STOPS_S)
        connection.request("GET", "/v2/health/live")
        told = connection.getresponse().headers["date"]
        connection.close()
        return parsedate_to_datetime(told).timestamp() - time.time()

    def log_problems(self) -> list[str]:
        """As ``Server.log_problems``."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line or line.startswith("ERROR")]


@contextmanager
def our_server(
    tasks: Tasks, folder: Path, *, budget_tasks: int = 3, may_be_killed: bool = False
) -> Iterator[Ours]:
    """Run the server, and stop it by SIGTERM.

    Args:
        tasks: What it serves.
        folder: Gets its log.
        budget_tasks: How many tasks fit into memory at once.
        may_be_killed: Whether SIGKILL may have ended it.

    Raises:
        RuntimeError: If it does not start, or ends otherwise than with status 0.
    """
    clock, log, token = folder / "clock", folder / "server.log", folder / "token"
    clock.write_text("+0")
    token.write_text(TOKEN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if FAKETIME is not None:
        environment |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else every short wait is a long one
            "NO_FAKE_STAT": "1",
        }
    command = [
        *(sys.executable, "-m", "glora_deploy.serving", "--store", str(tasks.store.root)),
        *("--port", "0", "--grpc-port", "0", "--threads", "1"),
        *("--memory-budget", f"{budget_tasks * 260}KB"),
        *("--management-token-file", str(token)),
    ]
    with log.open("wb") as lines:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=lines, env=environment, text=True
        )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        if not first:
            raise RuntimeError(f"the server did not start: {log.read_text()}")
        address = first.split()[0].removeprefix("http://")
        grpc = first.split()[-1]
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Ours(tasks, address, grpc, process.pid, log, clock)
    finally:
        process.send_signal(signal.SIGTERM)  # does nothing to one that was killed
        try:
            status = process.wait(STOPS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if status and not (may_be_killed and status == -signal.SIGKILL):
        raise RuntimeError(f"the server ended with status {status}: {log.read_text()[-2000:]}")
