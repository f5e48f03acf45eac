"""A real Triton Inference Server on this machine, where ``make test-triton`` has installed one."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-triton"
OUR_BACKEND = Path(__file__).parent / "triton_backend" / "onnxruntime"


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the server and what it loads lie."""

    packages: Path
    """Its site-packages."""
    version: str
    """Of Python, such as ``3.11``: the stub that runs models must be built for it."""
    libpython: Path
    """The folder that the stub finds Python in."""

    @property
    def server(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"


def find_installation() -> Installation | None:
    """The one that ``make test-triton`` makes; None if it is not there."""
    for packages in ENVIRONMENT.glob("lib/python3.*/site-packages"):
        home = (ENVIRONMENT / "bin" / "python").resolve().parents[1]
        version = packages.parent.name.removeprefix("python")
        found = Installation(packages, version, home / "lib")
        if (found.server / "bin" / "tritonserver").is_file():
            return found
    return None


needs_triton = pytest.mark.skipif(
    find_installation() is None,
    reason="needs a Triton server in .venv-triton: make test-triton installs it",
)


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A server that answers."""

    repository: Path
    http: str
    """Its address and port."""
    grpc: str
    log: Path


@contextmanager
def triton_server(repository: Path, folder: Path) -> Iterator[TritonServer]:
    """Run a server on a model repository, under explicit model control, and stop it.

    Args:
        repository: Served as it is; nothing of it is loaded yet.
        folder: An empty one, for the server's backends and its log.

    Raises:
        RuntimeError: If it does not start; says what it logged.
    """
    found = find_installation()
    assert found is not None
    backends = _make_backends(found, folder)
    http_port, grpc_port = _free_ports(2)
    log = folder / "log"
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [
                str(found.server / "bin" / "tritonserver"),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                "--model-control-mode=explicit",
                # Else a name that could not be loaded makes it unready for good.
                "--strict-readiness=false",
                "--http-address=127.0.0.1",
                f"--http-port={http_port}",
                "--grpc-address=127.0.0.1",
                f"--grpc-port={grpc_port}",
                "--allow-metrics=false",
                "--exit-timeout-secs=1",
            ],
            # The stub reads no PYTHONPATH: as any Python, it belongs to the environment whose
            # interpreter comes first in PATH.
            env={
                "LD_LIBRARY_PATH": f"{found.packages / 'nvidia_pytriton.libs'}:{found.libpython}",
                "PATH": f"{ENVIRONMENT / 'bin'}:/usr/bin:/bin",
            },
            stdout=lines,
            stderr=lines,
        )
    server = TritonServer(repository, f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", log)
    pause = threading.Event()
    try:
        while not _is_ready(server):
            if process.poll() is not None:
                raise RuntimeError(f"Triton did not start:\n{log.read_text()}")
            pause.wait(0.02)
        yield server
    finally:
        regions = _shared_memory(process.pid)
        process.terminate()
        process.wait()
        for region in regions:
            region.unlink(missing_ok=True)


def _make_backends(found: Installation, folder: Path) -> Path:
    """Its own backend for Python, with the stub, and ours beside it."""
    backends = folder / "backends"
    shutil.copytree(found.server / "backends" / "python", backends / "python")
    stub = "triton_python_backend_stub"
    shutil.copy(found.server / "python_backend_stubs" / found.version / stub, backends / "python")
    (backends / "python" / stub).chmod(0o755)
    shutil.copytree(OUR_BACKEND, backends / "onnxruntime")
    return backends


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _shared_memory(pid: int) -> set[Path]:
    """What models that run talk through, which the server leaves behind as it ends."""
    maps = Path(f"/proc/{pid}/maps")
    mapped = maps.read_text().splitlines() if maps.is_file() else []
    return {Path(line.split()[5]) for line in mapped if "/dev/shm/triton_" in line}


def _is_ready(server: TritonServer) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/health/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
