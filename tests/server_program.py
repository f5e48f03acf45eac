"""The server's program in a process of its own, where neither torch nor timm can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WITHOUT_TORCH = [
    sys.executable,
    "-c",
    "import sys; sys.modules['torch'] = None; sys.modules['timm'] = None\n"
    "from glora_deploy.serving.cli import main\n"
    "main()",
]


@contextmanager
def running(
    *arguments: str, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program, once it says that it listens, and the line that says so.

    Args:
        *arguments: Of ``glora serve``, but for the port, which is a free one.
        env: Variables beside those of this process.

    Raises:
        AssertionError: If it ends before it listens; has what it said on stderr.
    """
    process = subprocess.Popen(
        [*_WITHOUT_TORCH, "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first = process.stdout.readline()
        if not first:
            raise AssertionError(process.stderr.read())
        yield process, first
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
