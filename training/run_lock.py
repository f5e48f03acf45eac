"""One process at a time in the folder of a run, whatever way the one before it ended.

The kernel holds the lock for as long as the process lives, so a killed training leaves none behind.
The file beside it only tells people who has it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glora_deploy.errors import StoreError
from glora_deploy.store.manifest_fields import utc_now

LOCK = "lock"

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)
_TRIES = 5
_BETWEEN_TRIES_S = 0.05


@contextmanager
def hold(
    folder: Path, *, version: str | None, tell: Callable[[str], None] = lambda note: None
) -> Iterator[None]:
    """Have the folder of a run alone; it is made if missing, and removed if nothing came into it.

    The block may move the folder away: whoever comes next makes a new one.

    Args:
        folder: ``<store>/.runs/<task>``.
        version: What the run's artifact will be called, for others to know; None for a number.
        tell: Told if the file system knows no locks.

    Raises:
        StoreError: If another process has it; names the process.
    """
    handle = _acquire(folder, tell)
    try:
        about = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": utc_now(),
            "version": version,
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
        yield
    finally:
        _remove_if_unused(handle, folder)
        os.close(handle)


def require_not_held(folder: Path) -> None:
    """Refuse the folder of a run that another process has now; nothing is written.

    Raises:
        StoreError: If another process has it; names the process.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        # Shared, so that two who look do not see one another.
        _lock(handle, folder, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _acquire(folder: Path, tell: Callable[[str], None]) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its last holder has just moved the folder away
            continue
        try:
            if not _lock(handle, folder, fcntl.LOCK_EX):
                tell(
                    f"{folder}: this file system knows no locks. Take care that no other training "
                    "of this task runs: the two would destroy each other."
                )
                return handle
            if _is_here(handle, folder / LOCK):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the folder was moved away between opening and locking


def _lock(handle: int, folder: Path, kind: int) -> bool:
    """Lock an open file; False where the file system cannot."""
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not left:
                raise StoreError(
                    f"{folder}: another training of task {folder.name} is under way in this store: "
                    f"{_holder(handle)}. Wait for it, or give another --task or --store."
                ) from error
            time.sleep(_BETWEEN_TRIES_S)  # it may be one who only looks
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
        else:
            return True
    raise AssertionError("the last try returns or raises")


def _holder(handle: int) -> str:
    try:
        about = json.loads(os.pread(handle, 10_000, 0))
        version = about["version"] or "its next version"
        return (
            f"process {about['pid']} on {about['host']}, since {about['since']}, to store {version}"
        )
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


def _is_here(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_unused(handle: int, folder: Path) -> None:
    # Another process may have the place by now: its folder has a lock of its own.
    if _is_here(handle, folder / LOCK):
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
