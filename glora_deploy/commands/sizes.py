"""Bytes as the commands show them: megabytes, of files, of merged networks, in a bar."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import progress_bars
from ..errors import NotInStoreError, StoreError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ..plain_progress import Progress
    from ..store.artifact import Artifact
    from ..store.store import ArtifactStore

MEGABYTE = 1e6


def mb(size_bytes: int) -> str:
    """Megabytes with two digits.

    >>> mb(1_234_567_890)
    '1,234.57'
    """
    return f"{size_bytes / MEGABYTE:,.2f}"


def artifacts_of(store: ArtifactStore, task: str) -> Iterator[Artifact]:
    """Every version of a task, but for those that another process removes meanwhile."""
    with suppress(NotInStoreError):
        for version in store.versions(task):
            with suppress(NotInStoreError):
                yield store.get(task, version)


def merged_bytes(store: ArtifactStore, artifact: Artifact) -> int:
    """Bytes of the merged fp32 network; 0 if the store does not keep its backbone."""
    from ..store.reader import BACKBONE_WEIGHTS

    try:
        backbone = store.backbone_path(artifact.manifest.backbone.fingerprint)
    except StoreError:
        return 0
    weights = size_bytes(backbone / BACKBONE_WEIGHTS)
    return weights + 4 * artifact.manifest.n_head_parameters if weights else 0


def size_bytes(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class BytesBar:
    """A bar in megabytes that appears once the size is known."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title, self._done = progress, title, 0
        self._bar: TaskID | None = None

    def start(self, size_bytes: int) -> None:
        """Show the bar, or begin again, with this many bytes to come."""
        total, self._done = math.ceil(size_bytes / MEGABYTE), 0
        if self._bar is None:
            self._bar = self._progress.add_task(f"{self._title}, MB", total=total, note="")
        else:
            self._progress.reset(self._bar, total=total)

    def advance(self, size_bytes: int) -> None:
        """This many more are done."""
        self._done += size_bytes
        if self._bar is not None:
            self._progress.update(self._bar, completed=math.ceil(self._done / MEGABYTE))


@contextmanager
def bytes_bar(title: str, quiet: bool) -> Iterator[BytesBar]:
    """A bar for what is read or written in the block."""
    with progress_bars(quiet=quiet) as progress:
        yield BytesBar(progress, title)
