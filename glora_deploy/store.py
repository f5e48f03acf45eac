"""The artifact store: every version of every task in one folder, safe against crashes.

``store_read`` draws what lies where. Whatever is written is built under ``.tmp``, flushed to the
disk and renamed, so a crash at any moment leaves the old state or the new, and two processes may
write at once. POSIX file systems only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .artifact import Artifact, write_artifact
from .atomic import (
    flush,
    flush_tree,
    move_folder,
    replace_folder,
    scratch_folder,
    sweep,
    write_durable,
)
from .errors import StoreError
from .fingerprint import fingerprint as fingerprint_of
from .manifest import ManifestDraft, utc_now
from .store_audit import Finding, TaskSize, audit, audit_rest, size_of
from .store_read import (
    BACKBONE_CONFIG,
    BACKBONE_WEIGHTS,
    CURRENT,
    EXPORT_RECORD,
    StoreReader,
    require_slug,
)
from .tensor_file import create_tensor_file

__all__ = [
    "BACKBONE_CONFIG",
    "BACKBONE_WEIGHTS",
    "EXPORT_RECORD",
    "ArtifactStore",
    "Finding",
    "TaskSize",
]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NUMBERED = re.compile(r"v([1-9][0-9]{0,17})")


class ArtifactStore(StoreReader):
    """A store that can be written to."""

    @classmethod
    def open(cls, root: Path | str) -> ArtifactStore:
        """The store in an existing folder; nothing is written.

        Raises:
            StoreError: If the folder is missing, or is a file.
        """
        store = cls(root)
        if not store.root.is_dir():
            got = "a file" if store.root.exists() else "nothing there"
            raise StoreError(
                f"{root}: the store must be a folder, got {got}. "
                "Train a task into it, or give the folder of another store."
            )
        return store

    @classmethod
    def create(cls, root: Path | str) -> ArtifactStore:
        """The store in a folder that is made if it is missing.

        Raises:
            StoreError: If a file is in the way.
        """
        store = cls(root)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{root}: the store must be a folder, a file is in the way") from error
        sweep(store._tmp)
        return store

    def put(
        self,
        task: str,
        tensors: Mapping[str, NDArray[Any]],
        draft: ManifestDraft,
        *,
        version: str | None = None,
        make_current: bool = True,
    ) -> Artifact:
        """Store a delta as a new version of a task.

        Args:
            task: Slug; the task is made if it is new.
            tensors: As ``write_artifact`` takes them. Not modified.
            draft: What the delta is.
            version: Slug of the new version; by default v1, v2, ..., the one after the highest.
            make_current: Whether it answers from now on.

        Raises:
            StoreError: If a name is not a slug, the version exists, or no space is left.
            ValueError: If the tensors are not those of the draft.
            NonFiniteError: If a tensor holds NaN or infinity.
        """
        require_slug("task", task)
        require_slug("version", version or "v1")
        while True:
            name = version or self._next_version(task)
            place = self.inside(self.root / task / name)
            with self.scratch(f"{task}/{name}") as scratch:
                new = scratch / name
                new.mkdir()
                written = write_artifact(
                    new, draft, tensors, task=task, version=name, created=self._time(task)
                )
                flush(new)
                # All that takes space is written before anything is moved.
                write_durable(scratch / CURRENT, f"{name}\n".encode())
                if _move_in(new, place):
                    if make_current:
                        try:
                            _replace_current(scratch / CURRENT, place.parent)
                        except (OSError, StoreError):
                            place.rename(new)
                            _remove_if_empty(place.parent)
                            raise
                        flush(place.parent)
                    return Artifact(place, written.manifest)
            if version is not None and place.exists():
                raise StoreError(
                    f"{place}: the version must be new, it exists. "
                    "Give another one, or remove it first."
                )

    def set_current(self, task: str, version: str) -> Artifact:
        """Make a version the one that answers, once its delta has been read; one rename.

        Raises:
            StoreError: If the task or version is not here, or no space is left.
            ArtifactError: If its manifest or its delta is damaged.
        """
        artifact = self.get(task, version)
        artifact.tensors()
        with self.scratch(f"{task}/{CURRENT}") as scratch:
            write_durable(scratch / CURRENT, f"{version}\n".encode())
            _replace_current(scratch / CURRENT, self.root / task)
            flush(self.root / task)
        return artifact

    def rollback(self, task: str) -> Artifact:
        """Make the version created before the current one the one that answers.

        Raises:
            StoreError: If no version is current, or the current one is the oldest.
            ArtifactError: If the manifest or the delta of that version is damaged.
        """
        version = self.require_current(task)
        versions = self.versions(task)
        older = versions[: versions.index(version)]
        if not older:
            raise StoreError(
                f"{self.root / task}: {version} is the oldest version, there is none to roll back "
                f"to; versions here: {', '.join(versions)}"
            )
        return self.set_current(task, older[-1])

    def remove(self, task: str, version: str | None = None, *, force: bool = False) -> None:
        """Remove a version with its exports, or the whole task.

        Args:
            task: The task.
            version: Its version; None removes the whole task.
            force: Remove the version even if it is current, which leaves the task without one.

        Raises:
            StoreError: If it is not here, or is current and ``force`` was not given.
        """
        self.require_task(task)
        folder = self.root / task
        if version is None:
            self._move_away(folder)
            return
        self.require_version(task, version)
        if self.current(task) == version:
            if not force:
                raise StoreError(
                    f"{folder / version}: is the current version. Make another one current first, "
                    "remove the whole task, or force it."
                )
            (folder / CURRENT).unlink()
            flush(folder)
        self._move_away(folder / version)
        _remove_if_empty(folder)

    def verify(self, task: str | None = None) -> list[Finding]:
        """Read every file of a task, or of the whole store, against what is stated about it.

        Returns:
            What is wrong; empty if nothing is.

        Raises:
            StoreError: If there is no such task.
        """
        if task is not None:
            return list(audit(self, task))
        found = list(audit_rest(self))
        for name in self.tasks():
            found += audit(self, name)
        return found

    def sizes(self) -> dict[str, TaskSize]:
        """Bytes on disk, by task."""
        return {task: size_of(self, task) for task in self.tasks()}

    @contextmanager
    def replace_export(self, artifact: Artifact, precision: str) -> Iterator[Path]:
        """An empty folder that takes the place of ``export_dir`` once the block has succeeded.

        Files of the present export may be carried over by hard links; a linked file must not be
        written to. Exports of one artifact are built one at a time: a second caller, in any
        process, waits here, and so finds what the first one made; so never nest two. If the block
        raises, the folder is removed and the present export stays.

        Raises:
            StoreError: If the artifact is gone, or no space is left.
        """
        place = self.export_dir(artifact, precision)
        name = f"{artifact.task}/{artifact.version} {precision}"
        with self._alone(artifact), self.scratch(name) as scratch:
            new = scratch / precision
            new.mkdir()
            yield new
            flush_tree(new)
            try:
                place.parent.mkdir(exist_ok=True)
                replace_folder(new, place)
                flush(place.parent)
                flush(place.parent.parent)
            except FileNotFoundError as error:
                raise _gone(artifact) from error
            except OSError:
                _remove_if_empty(place.parent)
                raise

    def put_backbone(
        self, fingerprint: str, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]
    ) -> Path:
        """Keep a backbone, once: a second call with the same fingerprint changes nothing.

        Args:
            fingerprint: Of the tensors.
            tensors: State dict without the classifier. Not modified.
            config: JSON-ready; whatever rebuilds the network around them.

        Returns:
            The folder, as ``backbone_path`` gives it.

        Raises:
            ValueError: If the tensors have another fingerprint.
            StoreError: If no space is left.
        """
        place = self._backbone_folder(fingerprint)
        if place.is_dir():
            return place
        if (found := fingerprint_of(tensors)) != fingerprint:
            raise ValueError(f"the tensors must have fingerprint {fingerprint}, got {found}")
        with self.scratch("a backbone") as scratch:
            new = scratch / fingerprint
            new.mkdir()
            specs = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
            for name, target in create_tensor_file(new / BACKBONE_WEIGHTS, specs, {}).items():
                target[...] = tensors[name]
            write_durable(new / BACKBONE_CONFIG, json.dumps(dict(config), indent=1).encode())
            flush_tree(new)
            _move_in(new, place)  # or another process has just kept the same
        return place

    @property
    def skeletons(self) -> Path:
        """The folder for what exports cache, made if missing; all of it can be rebuilt."""
        folder = self.inside(self.root / ".skeletons")
        folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def scratch(self, what: str) -> Iterator[Path]:
        """An empty folder on the store's file system, removed after the block.

        Args:
            what: Named in the error when no space is left.

        Raises:
            StoreError: If no space is left.
        """
        with _space_for(self.root, what):
            sweep(self._tmp)
            with scratch_folder(self._tmp) as folder:
                yield folder

    @property
    def _tmp(self) -> Path:
        return self.inside(self.root / ".tmp")

    def _next_version(self, task: str) -> str:
        folder = self.inside(self.root / task)
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        taken = [int(match[1]) for match in map(_NUMBERED.fullmatch, names) if match]
        return f"v{max(taken, default=0) + 1}"

    def _time(self, task: str) -> str:
        """Now, but never before an existing version, should the clock have been set back."""
        known = list(self._created(task).values()) if (self.root / task).is_dir() else []
        return max([utc_now(), *known])

    def _move_away(self, folder: Path) -> None:
        with self.scratch(folder.name) as scratch:
            folder.rename(scratch / folder.name)
            flush(folder.parent)

    @contextmanager
    def _alone(self, artifact: Artifact) -> Iterator[None]:
        """Hold the artifact's folder against other exporters, as far as the system has locks."""
        try:
            handle = os.open(self.root / artifact.task / artifact.version, os.O_RDONLY)
        except FileNotFoundError as error:
            raise _gone(artifact) from error
        try:
            # Some network file systems cannot lock a folder; there the last exporter wins.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _move_in(new: Path, place: Path) -> bool:
    """Move a finished folder to its place; False if the place is taken."""
    try:
        place.parent.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise StoreError(f"{place.parent}: must be a folder, got a file") from error
    try:
        moved = move_folder(new, place)
    except FileNotFoundError:  # the task was removed between the two steps
        return False
    except OSError:
        _remove_if_empty(place.parent)
        raise
    if moved:
        flush(place.parent)
        flush(place.parent.parent)
    return moved


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _replace_current(new: Path, task_folder: Path) -> None:
    try:
        new.replace(task_folder / CURRENT)
    except IsADirectoryError as error:
        raise StoreError(
            f"{task_folder / CURRENT}: must be a file, got a folder. Remove it."
        ) from error


def _gone(artifact: Artifact) -> StoreError:
    return StoreError(f"{artifact.path}: {artifact.task}/{artifact.version} is not in the store")


@contextmanager
def _space_for(root: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise StoreError(
            f"{root}: no space left to write {what} ({error.strerror}); the store is as it was. "
            "Free some space and try again."
        ) from error
