"""A real Triton server on the repository that is exported from the store."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tritonclient.http as triton_http
from typer.testing import CliRunner

from glora_deploy.export.cli.commands import app

from .tasks import Tasks

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from triton_server import find_installation, triton_server

KEPT = 4
"""Versions of a task in its repository."""


class Triton:
    """Triton under explicit model control; each published version is the next number."""

    refusals = (
        r"not at ready state|has no available versions|unknown model|is not found|not ready",
        r"version \S+ is at \S+ state",
    )
    wrongs_are_5xx = True
    watches = False

    def __init__(self, tasks: Tasks, http: str, grpc: str, repository: Path, log: Path) -> None:
        self.http, self.grpc = http, grpc
        self._tasks, self._repository, self._log = tasks, repository, log
        self._configs: dict[str, dict[str, object]] = {}
        self._numbers: dict[tuple[str, str], str] = {}
        self._versions: dict[tuple[str, str], str] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        """The server and the processes of its models."""
        found, waiting = [], [os.getpid()]
        while waiting:
            for child in _children(waiting.pop()):
                waiting.append(child)
                if _name(child).startswith(("tritonserver", "triton_python")):
                    found.append(child)
        return tuple(found)

    def asked_by(self, task: str, version: str) -> str:
        """As ``Server.asked_by``."""
        return self._numbers[task, version]

    def version_of(self, task: str, number: str) -> str:
        """As ``Server.version_of``."""
        return self._versions[task, number]

    def publish(self, task: str, version: str) -> None:
        """As ``Server.publish``."""
        self._tasks.store.set_current(task, version)
        self._export(task)

    def load(self, task: str, version: str | None = None) -> None:
        """As ``Server.load``."""
        if version is None:
            version = self._tasks.store.current(task)
        assert version is not None
        with self._client() as client:
            if task not in self._configs:  # it is told of models that are loaded alone
                client.load_model(task)
                self._configs[task] = client.get_model_config(task)
            number = int(self._numbers[task, version])
            policy = {"version_policy": {"specific": {"versions": [number]}}}
            client.load_model(task, config=json.dumps(self._configs[task] | policy))

    def unload(self, task: str) -> None:
        """As ``Server.unload``."""
        with self._client() as client:
            client.unload_model(task)

    def corrupt(self, task: str, version: str) -> None:
        """As ``Server.corrupt``."""
        self.publish(task, version)
        graph = self._model(task, version) / "model.onnx" / "model.onnx"
        self._whole = graph.read_bytes()
        graph.write_bytes(self._whole[: len(self._whole) // 2])

    def mend(self, task: str, version: str, good: str) -> None:
        """As ``Server.mend``."""
        graph = self._model(task, version) / "model.onnx" / "model.onnx"
        graph.write_bytes(self._whole)
        self._tasks.store.set_current(task, good)

    def forget(self, task: str, version: str) -> None:
        """As ``Server.forget``."""
        self._tasks.store.remove(task, version)

    def log_problems(self) -> list[str]:
        """As ``Server.log_problems``."""
        return []

    def _model(self, task: str, version: str) -> Path:
        return self._repository / task / self._numbers[task, version]

    def _client(self) -> triton_http.InferenceServerClient:
        """A new one: it may not leave the thread that made it."""
        return triton_http.InferenceServerClient(self.http, network_timeout=120.0)

    def _export(self, task: str) -> None:
        places = ["--store", str(self._tasks.store.root), "--out", str(self._repository)]
        command = ["--task", task, "--fmt", "triton", "--images", "1"]
        done = CliRunner().invoke(app, [*command, *places, "--keep-versions", str(KEPT)])
        if done.exit_code:
            raise RuntimeError(done.output)
        version = self._tasks.store.current(task)
        assert version is not None
        numbers = [int(one.name) for one in (self._repository / task).glob("[0-9]*")]
        number = str(max(numbers))
        self._numbers[task, version] = number
        self._versions[task, number] = version


@contextmanager
def triton_on(tasks: Tasks, folder: Path) -> Iterator[Triton]:
    """Run the server that ``make test-triton`` installs.

    Raises:
        SystemExit: If it is not there.
    """
    if find_installation() is None:
        raise SystemExit("needs a Triton server: make test-triton installs one")
    repository, home = folder / "repository", folder / "triton"
    repository.mkdir()
    home.mkdir()
    with triton_server(repository, home) as server:
        found = Triton(tasks, server.http, server.grpc, repository, server.log)
        for task in tasks.names:
            found._export(task)
            found.load(task)
        yield found


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(folder.name))
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
