"""What the repository holds, as Git knows it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@cache
def tracked_files() -> tuple[str, ...]:
    """Path of every file below ROOT that is there and that Git does not ignore, sorted.

    A file counts before it is added, so that a test says the same before and after a commit.
    """
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = done.stdout.split("\0")[:-1]
    return tuple(sorted({name for name in names if (ROOT / name).is_file()}))
