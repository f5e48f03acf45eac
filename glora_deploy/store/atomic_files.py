"""Writing so that a crash at any moment leaves the old state or the new, never a mixture.

Everything is built in a scratch folder on the same file system, flushed to the disk, and moved to
its place by one rename; the folder that holds it is flushed after. Durable on POSIX file systems.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

_STALE_AFTER_S = 24 * 3600
"""Age at which a scratch folder is swept whoever made it."""

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_SCRATCH = re.compile(r"(?P<host>[0-9a-f]{8})-(?P<pid>[1-9][0-9]{0,8})-[0-9a-f]{16}")


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder under parent, removed at the end unless it has been moved away.

    Its name tells which process made it, so that ``sweep`` can remove what a dead one left.
    """
    parent.mkdir(exist_ok=True)
    folder = parent / f"{_host()}-{os.getpid()}-{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what dead processes of this host, or anyone over a day ago, left under parent."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        try:
            if _is_leftover(entry):
                shutil.rmtree(entry, ignore_errors=True)
        except FileNotFoundError:  # its owner was quicker
            continue


def _is_leftover(entry: Path) -> bool:
    made_by = _SCRATCH.fullmatch(entry.name)
    if made_by is None:
        return False
    if made_by["host"] == _host() and not _is_alive(int(made_by["pid"])):
        return True
    return time.time() - entry.stat().st_mtime > _STALE_AFTER_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def _host() -> str:
    """Where a pid means something: this machine and, in containers, this pid namespace."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def write_durable(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, scratch: Path) -> None:
    """Give path this content by one rename; readers see the old bytes or the new.

    Args:
        path: File to make or replace.
        data: Its whole content.
        scratch: Parent of scratch folders, on the same file system.
    """
    with scratch_folder(scratch) as folder:
        new = folder / path.name
        write_durable(new, data)
        new.replace(path)
    flush(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name, flushed to the disk, once the block has succeeded.

    A file of that name is replaced. If the block fails it stays, and nothing else is left.

    Raises:
        OSError: If it cannot be written; names this file.
    """
    new = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    try:
        with new.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        if error.filename == str(new):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush one file's bytes, or one folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below and including this one."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            flush_tree(entry)
        else:
            flush(entry)
    flush(folder)


def move_folder(new: Path, place: Path) -> bool:
    """Rename a folder to a place that must be free; False if something is there."""
    try:
        new.rename(place)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder ``new`` in the place of another; the old content ends up at ``new``, if any.

    Where the system can exchange two names (Linux, on most file systems) nobody ever sees the
    place empty. Elsewhere there is a moment between two renames in which it is.
    """
    if not move_folder(new, place) and not _exchange(new, place):
        old = new.with_name(f"{new.name}.old")
        place.rename(old)
        new.rename(place)
        old.rename(new)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(a: Path, b: Path) -> bool:
    """Swap what two names stand for in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(b))
