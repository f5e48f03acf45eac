"""Folders held open: locked against other processes, and known again when they come back.

A lock lies on a folder itself, so it needs no file and leaves none; it ends with the process that
holds it. Every opened folder has a lock of its own, also within one process.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from ..errors import GloraDeployError

T = TypeVar("T")


class OpenFolder:
    """A folder held open until the end of the block, or as long as this object lives.

    Meanwhile the system gives its identity to no other folder, so one that has taken its place
    under the same name is told from it.

    Args:
        path: The folder; links are followed.

    Raises:
        FileNotFoundError: If it is missing.
        NotADirectoryError: If it is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._close = weakref.finalize(self, os.close, self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder and of its lock; a second call does nothing."""
        self._close()

    def in_place(self) -> bool:
        """Whether this folder is still what its path stands for."""
        try:
            there = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(os.fstat(self._handle), there)

    def lock(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Lock the folder until it is closed.

        Args:
            shared: Keep out only those who want it alone.
            wait: Wait for whoever holds it.

        Returns:
            Whether it is locked now. False if another holds it and ``wait`` is False, or on a file
            system that cannot lock folders.
        """
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.flock(self._handle, how)
        except OSError:
            return False
        return True


@contextmanager
def folder_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder against others, or ``shared`` against those who want it alone.

    Never nest two on one folder: the second would wait for the first. Some network file systems
    cannot lock a folder; there nobody is kept out.

    Raises:
        FileNotFoundError: If it is missing.
    """
    with OpenFolder(path) as folder:
        folder.lock(shared=shared)
        yield


def read_in_place(path: Path, read: Callable[[], T]) -> T | None:
    """What ``read`` makes of a folder; None if it cannot because the folder is gone or replaced.

    Raises:
        GloraDeployError: Of ``read``, while the folder is where it was.
        OSError: Likewise.
    """
    try:
        folder = OpenFolder(path)
    except FileNotFoundError:
        return None
    with folder:
        try:
            return read()
        except (GloraDeployError, OSError):
            if folder.in_place():
                raise
            return None
