"""The artifact store: every version of every task in one folder, safe against crashes.

``reader`` draws what lies where. Whatever is written is built under ``.tmp``, flushed to the
disk and renamed, so a crash at any moment leaves the old state or the new. Any number of processes
may write and read at once: the renames of one action are made while no other process makes any.
POSIX file systems only.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from ..errors import GloraDeployError, NotInStoreError, StoreError
from .artifact import Artifact, write_artifact
from .atomic_files import (
    flush,
    flush_tree,
    move_folder,
    replace_folder,
    scratch_folder,
    sweep,
    write_durable,
)
from .audit import Finding, TaskSize, audit, audit_rest, size_of, without_backbone
from .backbone_config import require_intact_config, seal
from .companions import require_companions, write_companions
from .comparisons import damaged_comparisons, has_comparison, remove_comparison
from .disk_space import space_for
from .fingerprint import fingerprint as fingerprint_of
from .folder_lock import OpenFolder, folder_lock, read_in_place
from .manifest import ManifestDraft, utc_now
from .mapped_safetensors import create_tensor_file
from .reader import (
    BACKBONE_CONFIG,
    BACKBONE_WEIGHTS,
    CURRENT,
    EXPORT_RECORD,
    SKELETONS,
    StoreReader,
    require_slug,
)

__all__ = [
    "BACKBONE_CONFIG",
    "BACKBONE_WEIGHTS",
    "EXPORT_RECORD",
    "ArtifactStore",
    "Finding",
    "TaskSize",
]

log = logging.getLogger(__name__)

_NO_LEAVE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NUMBERED = re.compile(r"v([1-9][0-9]{0,17})")


class ArtifactStore(StoreReader):
    """A store that can be written to."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)
        self._held: dict[str, OpenFolder] = {}

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
            StoreError: If a file is in the way, or the folder cannot be written to.
        """
        store = cls(root)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{root}: the store must be a folder, a file is in the way") from error
        if not os.access(store.root, os.W_OK):  # before what took long would be lost
            raise _not_writable(store.root)
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
        companions: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Artifact:
        """Store a delta as a new version of a task.

        Args:
            task: Slug; the task is made if it is new.
            tensors: As ``write_artifact`` takes them. Not modified.
            draft: What the delta is.
            version: Slug of the new version; by default v1, v2, ..., the one after the highest.
            make_current: Whether it answers from now on.
            companions: Content of the files that lie beside it, by name (``COMPANIONS``).

        Raises:
            StoreError: If a name is not a slug, the version exists, or no space is left.
            ValueError: If the tensors are not those of the draft, or a companion is too large.
            NonFiniteError: If a tensor holds NaN or infinity.
        """
        require_slug("task", task)
        require_slug("version", version or "v1")
        require_companions(companions)
        self.hold_backbone(draft.backbone.fingerprint)
        while True:
            name = version or self._next_version(task)
            place = self.inside(self.root / task / name)
            with self.scratch(f"{task}/{name}") as scratch:
                new = scratch / name
                new.mkdir()
                written = write_artifact(
                    new, draft, tensors, task=task, version=name, created=self._time(task)
                )
                write_companions(new, written.manifest.adapter, companions)
                flush(new)
                # All that takes space is written before anything is moved.
                write_durable(scratch / CURRENT, f"{name}\n".encode())
                with self.moving():
                    if move_in(new, place):
                        if make_current:
                            try:
                                replace_current(scratch / CURRENT, place.parent)
                            except (OSError, StoreError):
                                place.rename(new)
                                _remove_if_empty(place.parent)
                                raise
                            flush(place.parent)
                        log.info("%s: stored%s", place, ", current" if make_current else "")
                        return Artifact(place, written.manifest)
            if version is not None and place.exists():
                raise StoreError(
                    f"{place}: the version must be new, it exists. "
                    "Give another one, or remove it first."
                )

    def set_current(self, task: str, version: str) -> Artifact:
        """Make a version the one that answers, once its delta has been read; one rename.

        Raises:
            NotInStoreError: If the task or version is not here.
            StoreError: If no space is left.
            ArtifactError: If its manifest or its delta is damaged.
        """
        while True:
            if artifact := self._try_current(task, version):
                return artifact

    def rollback(self, task: str) -> Artifact:
        """Make the version created before the current one the one that answers.

        Two at once go back by two.

        Raises:
            NotInStoreError: If there is no such task.
            StoreError: If no version is current, or the current one is the oldest.
            ArtifactError: If the manifest or the delta of that version is damaged.
        """
        while True:
            version = self.require_current(task)
            versions = self.versions(task)
            if version not in versions or self.current(task) != version:
                continue  # another process was quicker
            older = versions[: versions.index(version)]
            if not older:
                raise StoreError(
                    f"{self.root / task}: {version} is the oldest version, there is none to roll "
                    f"back to; versions here: {', '.join(versions)}"
                )
            with suppress(NotInStoreError):  # removed meanwhile: the one before it, then
                if artifact := self._try_current(task, older[-1], instead_of=version):
                    return artifact

    def remove(self, task: str, version: str | None = None, *, force: bool = False) -> None:
        """Remove a version with its exports, a comparison, or the whole task.

        Args:
            task: The task.
            version: Its version; None removes the whole task, and so does its only version.
            force: Remove the version even if it is current, which leaves the task without one.

        Raises:
            NotInStoreError: If it is not here.
            StoreError: If it is current and ``force`` was not given.
        """
        folder = self.root / task
        if (
            version is not None
            and version not in self.version_names(task)
            and has_comparison(self.root, task, version)
        ):
            remove_comparison(self.root, task, version)
            log.info("%s/%s: removed, a comparison", task, version)
            return
        self._require(task, version)
        with self.scratch(task) as scratch, self.moving():
            self._require(task, version)
            place = folder if version is None else folder / version
            if version is not None:
                is_current = self.current(task) == version
                if is_current and not force:
                    raise StoreError(
                        f"{place}: is the current version. Make another one current first, "
                        "remove the whole task, or force it."
                    )
                if {entry.name for entry in folder.iterdir()} <= {version, CURRENT}:
                    place = folder  # a task without a version is no task
                elif is_current:
                    (folder / CURRENT).unlink()
                    flush(folder)
            place.rename(scratch / place.name)
            flush(place.parent)
        log.info("%s: removed", place)

    def verify(self, task: str | None = None) -> list[Finding]:
        """Read every file of a task, or of the whole store, against what is stated about it.

        What another process stores, replaces or removes meanwhile is no problem.

        Returns:
            What is wrong; empty if nothing is.

        Raises:
            NotInStoreError: If there is no such task.
        """
        kept = [
            Finding(None, None, problem)
            for (of_task, _), problem in damaged_comparisons(self.root).items()
            if task in (None, of_task)
        ]
        if task is not None:
            return [*audit(self, task), *kept]
        found = [*audit_rest(self), *kept]
        for name in self.tasks():
            with suppress(NotInStoreError):  # removed meanwhile
                found += audit(self, name)
        return found

    def without_backbone(self, task: str | None = None) -> list[Finding]:
        """The versions that cannot be exported because the store lacks their backbone.

        Nothing about them is wrong, so ``verify`` does not list them.

        Raises:
            NotInStoreError: If there is no such task.
        """
        if task is not None:
            return list(without_backbone(self, task))
        found: list[Finding] = []
        for name in self.tasks():
            with suppress(NotInStoreError):
                found += without_backbone(self, name)
        return found

    def sizes(self) -> dict[str, TaskSize]:
        """Bytes on disk, by task."""
        found = {}
        for task in self.tasks():
            with suppress(NotInStoreError):
                found[task] = size_of(self, task)
        return found

    @contextmanager
    def replace_export(self, artifact: Artifact, precision: str) -> Iterator[Path]:
        """An empty folder that takes the place of ``export_dir`` once the block has succeeded.

        Files of the present export may be carried over by hard links; a linked file must not be
        written to. Exports of one artifact are built one at a time: a second caller, in any
        process, waits here, and so finds what the first one made; so never nest two. If the block
        raises, the folder is removed and the present export stays.

        Raises:
            NotInStoreError: If the artifact is gone, or is removed before the block ends; another
                that has taken its name gets no export that is not its own.
            StoreError: If no space is left.
        """
        place = self.export_dir(artifact, precision)
        name = f"{artifact.task}/{artifact.version} {precision}"
        with self._exporting(artifact) as folder, self.scratch(name) as scratch:
            new = scratch / precision
            new.mkdir()
            try:
                yield new
            except (GloraDeployError, OSError) as error:
                if folder.in_place():
                    raise
                raise _gone(artifact) from error
            flush_tree(new)
            with self.moving():
                if not folder.in_place():
                    raise _gone(artifact)
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

        No ``prune`` of another process removes it before this object is gone (``hold_backbone``).

        Args:
            fingerprint: Of the tensors.
            tensors: State dict without the classifier. Not modified.
            config: JSON-ready; whatever rebuilds the network around them.

        Returns:
            The folder, as ``backbone_path`` gives it.

        Raises:
            ValueError: If the tensors have another fingerprint.
            ArtifactError: If it is kept already, and damaged (``require_intact_backbone``).
            StoreError: If no space is left.
        """
        place = self._backbone_folder(fingerprint)
        if self.hold_backbone(fingerprint):
            self.require_intact_backbone(fingerprint)
            return place
        if (found := fingerprint_of(tensors)) != fingerprint:
            raise ValueError(f"the tensors must have fingerprint {fingerprint}, got {found}")
        with self.scratch("a backbone") as scratch:
            new = scratch / fingerprint
            new.mkdir()
            text = json.dumps(dict(config), indent=1).encode()
            specs = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
            out = create_tensor_file(new / BACKBONE_WEIGHTS, specs, seal(text))
            for name, target in out.items():
                target[...] = tensors[name]
            write_durable(new / BACKBONE_CONFIG, text)
            flush_tree(new)
            self.move_in_backbone(new)
        return place

    def require_intact_backbone(self, fingerprint: str) -> None:
        """Check a backbone, if it is kept, as far as that takes no time: its tensors are not read.

        What takes long and ends in ``put_backbone`` calls it first.

        Raises:
            ArtifactError: If its config.json, or the header of its weights, is damaged.
        """
        place = self._backbone_folder(fingerprint)
        if place.is_dir():
            read_in_place(place, partial(require_intact_config, place))

    def move_in_backbone(self, new: Path) -> bool:
        """Keep and hold a backbone whose finished folder lies in ``scratch``, by its name there.

        Returns:
            Whether it was moved; False if the store keeps it already.

        Raises:
            StoreError: If a file is in the way.
        """
        place = self._backbone_folder(new.name)
        while not self.hold_backbone(new.name):
            held = OpenFolder(new)
            held.lock(shared=True)
            held.path = place
            with self.moving():
                if move_in(new, place):
                    self._held[new.name] = held
                    return True
            if not place.is_dir() and os.path.lexists(place):
                raise StoreError(f"{place}: must be a folder, got a file. Remove it.")
        return False

    def hold_backbone(self, fingerprint: str) -> bool:
        """Keep a backbone from being pruned by others as long as this object lives.

        What stores a version whose backbone is in the store already calls it first.

        Returns:
            Whether the store keeps the backbone.
        """
        held = self._held.get(fingerprint)
        while held is None or not held.in_place():
            try:
                held = OpenFolder(self._backbone_folder(fingerprint))
            except (FileNotFoundError, NotADirectoryError):
                return False
            held.lock(shared=True)  # waits for a prune that may be removing it
        self._held[fingerprint] = held
        return True

    def release_backbones(self) -> None:
        """Hold no backbone any longer."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def remove_backbone(self, fingerprint: str) -> None:
        """Remove a backbone that the caller has locked, by one rename."""
        place = self._backbone_folder(fingerprint)
        with self.scratch("a backbone") as scratch, self.moving():
            place.rename(scratch / fingerprint)
            flush(place.parent)

    @property
    def skeletons(self) -> Path:
        """The folder for what exports cache, made if missing; all of it can be rebuilt."""
        folder = self.inside(self.root / SKELETONS)
        folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def scratch(self, what: str) -> Iterator[Path]:
        """An empty folder on the store's file system, removed after the block.

        Args:
            what: Named in the error when no space is left.

        Raises:
            StoreError: If no space is left, or the store cannot be written to.
        """
        with space_for(what, self.root, "store", StoreError), _leave_to_write(self.root):
            sweep(self._tmp)
            with scratch_folder(self._tmp) as folder:
                yield folder

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Alone in the block among all that move things in this store; keep it short.

        Never nest two, nor ``steady`` in it.
        """
        with folder_lock(self.root):
            yield

    @property
    def _tmp(self) -> Path:
        return self.inside(self.root / ".tmp")

    def _require(self, task: str, version: str | None) -> None:
        if version is None:
            self.require_task(task)
        else:
            self.require_version(task, version)

    def _try_current(
        self, task: str, version: str, *, instead_of: str | None = None
    ) -> Artifact | None:
        """Make a version current; None if it was replaced, or ``instead_of`` is not current now."""
        self.require_version(task, version)
        try:
            folder = OpenFolder(self.root / task / version)
        except FileNotFoundError:
            return None
        with folder, self.scratch(f"{task}/{CURRENT}") as scratch:
            try:
                artifact = self._read(task, version)
                artifact.tensors()
            except (GloraDeployError, OSError):
                if folder.in_place():
                    raise
                return None
            write_durable(scratch / CURRENT, f"{version}\n".encode())
            with self.moving():
                if not folder.in_place():
                    return None
                if instead_of is not None and self.current(task) != instead_of:
                    return None
                replace_current(scratch / CURRENT, self.root / task)
                flush(self.root / task)
        log.info("%s: current", artifact.path)
        return artifact

    def _next_version(self, task: str) -> str:
        folder = self.inside(self.root / task)
        try:
            names = [entry.name for entry in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            names = []
        taken = [int(match[1]) for match in map(_NUMBERED.fullmatch, names) if match]
        return f"v{max(taken, default=0) + 1}"

    def _time(self, task: str) -> str:
        """Now, but never before an existing version, should the clock have been set back."""
        return max([utc_now(), *self._created(task).values()])

    @contextmanager
    def _exporting(self, artifact: Artifact) -> Iterator[OpenFolder]:
        """The artifact's folder, held against other exporters as far as the system has locks.

        Where it has none, as on some network file systems, the last exporter wins.
        """
        try:
            folder = OpenFolder(self.root / artifact.task / artifact.version)
        except FileNotFoundError as error:
            raise _gone(artifact) from error
        with folder:
            folder.lock()
            # It may have been removed while this one waited, and another have taken its name.
            try:
                present = self.get(artifact.task, artifact.version)
            except NotInStoreError as error:
                raise _gone(artifact) from error
            if not folder.in_place() or present.manifest != artifact.manifest:
                raise _gone(artifact)
            yield folder


def move_in(new: Path, place: Path) -> bool:
    """Move a finished folder to its place, flushed; False if the place is taken.

    Raises:
        StoreError: If a file is where its parent should be.
    """
    try:
        place.parent.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise StoreError(f"{place.parent}: must be a folder, got a file") from error
    try:
        moved = move_folder(new, place)
    except FileNotFoundError:  # where nothing can be locked, the task was removed just now
        return False
    except OSError:
        _remove_if_empty(place.parent)
        raise
    if moved:
        flush(place.parent)
        flush(place.parent.parent)
    return moved


def replace_current(new: Path, task_folder: Path) -> None:
    """Let a finished file say which version of a task answers; the caller flushes the folder.

    Raises:
        StoreError: If a folder is in the way.
    """
    try:
        new.replace(task_folder / CURRENT)
    except IsADirectoryError as error:
        raise StoreError(
            f"{task_folder / CURRENT}: must be a file, got a folder. Remove it."
        ) from error


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _gone(artifact: Artifact) -> NotInStoreError:
    return NotInStoreError(
        f"{artifact.path}: {artifact.task}/{artifact.version} is not in the store"
    )


@contextmanager
def _leave_to_write(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LEAVE or not _is_of_writing(error, root):
            raise
        raise _not_writable(root) from error


def _not_writable(root: Path) -> StoreError:
    return StoreError(
        f"{root}: the store must be writable, this user may not write to it; it is as it was. "
        "Change who may, or give a copy of it with --store."
    )


def _is_of_writing(error: OSError, root: Path) -> bool:
    """Whether an error without leave comes from a change in the store, not from reading a file."""
    names = (error.filename, error.filename2)
    paths = [Path(name) for name in names if isinstance(name, str | Path)]
    return any(
        path.is_relative_to(root / ".tmp")
        or (path.is_relative_to(root) and not os.access(path.parent, os.W_OK))
        for path in paths
    )
