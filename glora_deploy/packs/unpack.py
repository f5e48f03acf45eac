"""A pack into a store: everything is checked before anything of it appears there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError, GloraDeployError, StoreError
from ..store.artifact import MANIFEST, write_artifact
from ..store.atomic_files import flush, flush_tree
from ..store.companions import COMPANIONS, read_companions, write_companions
from ..store.manifest import Manifest
from ..store.prune import remove_if_unused
from ..store.reader import CURRENT, require_slug
from ..store.redact import redacted
from ..store.store import ArtifactStore, move_in, replace_current
from .pack_file import OnBytes, PackIndex, extract, read_index


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One version of a pack that is in the store now."""

    task: str
    version: str
    is_new: bool
    """False if the same version was there already."""


def unpack(
    store: ArtifactStore,
    path: Path,
    *,
    as_task: str | None = None,
    make_current: bool = True,
    on_size: OnBytes = lambda _: None,
    on_bytes: OnBytes = lambda _: None,
) -> list[Unpacked]:
    """Bring the tasks of a pack into the store, all of them or none.

    A version that is there already stays; it may name the place of its data. A task without a
    current version gets the pack's; one that has one keeps it. A version that gets another task's
    name keeps its own name and time; its files are written anew, since they hold the task's name.

    Args:
        store: Gets the versions, and the backbones that it lacks. Its folder is made if it is
            missing.
        path: The pack.
        as_task: Another name for the pack's only task.
        make_current: Whether a task without a current version gets the pack's.
        on_size: Told the number of bytes to read before the first of them.
        on_bytes: Told of each further number of bytes read.

    Returns:
        Every version of the pack, by task and name.

    Raises:
        ArtifactError: If the file is no pack, damaged, or holds what is not sound.
        StoreError: If another version of the same name is there, the pack holds several tasks and
            ``as_task`` was given, or no space is left.
        OSError: If the file cannot be read.
    """
    if as_task is not None:
        require_slug("task", as_task)
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise ArtifactError(f"{path}: must be a file that 'glora pack' wrote")
    with path.open("rb") as file:
        index = read_index(file, str(path))
        if as_task is not None and len(index.tasks) != 1:
            raise StoreError(
                f"{path}: holds {len(index.tasks)} tasks ({', '.join(sorted(index.tasks))}). "
                "--as names one task: leave it out."
            )
        on_size(index.data_bytes())
        with _made(store), store.scratch(path.name) as scratch:
            (scratch / "store").mkdir()
            prepared = ArtifactStore(scratch / "store")
            extract(file, index, prepared.root, str(path), on_bytes)
            require_sound(prepared, str(path))
            _require_used(prepared, index, path)
            if as_task is not None:
                _rename(prepared, as_task)
            if not make_current:
                for task in prepared.tasks():
                    (prepared.root / task / CURRENT).unlink(missing_ok=True)
            flush_tree(prepared.root)
            return take_in(store, prepared, str(path))


@contextmanager
def _made(store: ArtifactStore) -> Iterator[None]:
    """The store's folder, made for the block if it is missing; gone again if the block fails."""
    is_new = not store.root.exists()
    ArtifactStore.create(store.root)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if is_new:
                (store.root / ".tmp").rmdir()
                store.root.rmdir()
        raise


def require_sound(prepared: ArtifactStore, where: str) -> None:
    """Check a store that was made of what came from elsewhere, as ``verify`` does.

    Args:
        prepared: All that came.
        where: It came from; named in the error.

    Raises:
        ArtifactError: If anything is wrong; names the first.
    """
    for finding in prepared.verify():
        problem = finding.problem.replace(f"{prepared.root}/", "")
        raise ArtifactError(f"{where}: {problem}")


def _require_used(prepared: ArtifactStore, index: PackIndex, path: Path) -> None:
    used = {
        prepared.get(task, version).manifest.backbone.fingerprint
        for task in prepared.tasks()
        for version in prepared.versions(task)
    }
    for fingerprint in sorted(index.backbones.keys() - used):
        raise ArtifactError(
            f"{path}: holds the backbone {fingerprint[:12]}.., which none of its versions uses"
        )


def _rename(prepared: ArtifactStore, new: str) -> None:
    """Give the only task of a store another name."""
    (old,) = prepared.tasks()
    if new == old:
        return
    for version in prepared.versions(old):
        artifact = prepared.get(old, version)
        folder = prepared.root / new / version
        folder.mkdir(parents=True)
        written = write_artifact(
            folder,
            artifact.manifest,
            artifact.stored_tensors(),
            task=new,
            version=version,
            created=artifact.manifest.created,
        )
        beside = read_companions(artifact.path, artifact.manifest.adapter)
        renamed = {name: COMPANIONS[name].renamed(data, new) for name, data in beside.items()}
        write_companions(folder, written.manifest.adapter, renamed)
    if (prepared.root / old / CURRENT).exists():
        (prepared.root / old / CURRENT).rename(prepared.root / new / CURRENT)
    shutil.rmtree(prepared.root / old)


def take_in(store: ArtifactStore, prepared: ArtifactStore, where: str) -> list[Unpacked]:
    """Move what a sound store holds into another one, all of it or nothing.

    A version that is there already stays, and so does a task's current version.

    Args:
        store: Gets the versions, and the backbones that it lacks.
        prepared: In a ``scratch`` folder of ``store``, on the disk; what is moved is gone from it.
        where: It came from; named in errors.

    Returns:
        Every version of ``prepared``.

    Raises:
        StoreError: If another version of the same name is there, or something is in the way.
        ArtifactError: If a version that is there already is damaged.
    """
    versions = [(t, v) for t in prepared.tasks() for v in sorted(prepared.version_names(t))]
    new = {(t, v): _is_new(store, prepared, t, v, where) for t, v in versions}
    for task, version in versions:
        if not new[task, version]:
            _require_intact(store, task, version)
        # What the store keeps already must stay until the version is there.
        store.hold_backbone(prepared.get(task, version).manifest.backbone.fingerprint)
    added: list[str] = []
    try:
        for name in prepared.backbone_names():
            if store.move_in_backbone(prepared.backbones / name):
                added.append(name)
        with store.moving():
            # Another process may have put or removed one since.
            new = {(t, v): _is_new(store, prepared, t, v, where) for t, v in versions}
            _move(store, prepared, [version for version in versions if new[version]])
    except BaseException:
        with suppress(GloraDeployError):
            remove_if_unused(store, added)
        raise
    return [Unpacked(task, version, new[task, version]) for task, version in versions]


def _is_new(
    store: ArtifactStore, prepared: ArtifactStore, task: str, version: str, where: str
) -> bool:
    """Whether a version is not in the store yet; one that is must be the same.

    The same but for the place of its data, which a pack does not name and its own store may.
    """
    place = store.inside(store.root / task / version)
    if not os.path.lexists(place):
        return True
    # It states the digest of the adapter.
    if not _is_same(place / MANIFEST, prepared.root / task / version / MANIFEST, store):
        raise StoreError(
            f"{place}: is another version than the one of that name in {where}. Give the task "
            "another name with --as, or remove that version first."
        )
    return False


def _is_same(there: Path, packed: Path, store: ArtifactStore) -> bool:
    try:
        found = store.inside(there).read_bytes()
    except OSError:
        return False
    new = packed.read_bytes()
    if found == new:
        return True
    try:
        ours, theirs = Manifest.from_json(found), Manifest.from_json(new)
    except ArtifactError:  # ours is damaged
        return False
    return redacted(ours) == redacted(theirs)


def _require_intact(store: ArtifactStore, task: str, version: str) -> None:
    try:
        store.get(task, version).tensors()
    except ArtifactError as error:
        raise ArtifactError(f"{error} Or remove {task}/{version} and unpack again.") from error


def _move(store: ArtifactStore, prepared: ArtifactStore, new: list[tuple[str, str]]) -> None:
    """Move versions into the store, or none if one of the moves fails."""
    currents = {task: prepared.root / task / CURRENT for task in prepared.tasks()}
    moved: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        for task, version in new:
            source, place = prepared.root / task / version, store.root / task / version
            moved.append((source, place))
            if not move_in(source, place):
                raise StoreError(f"{place}: something is in the way. Move it away.")
        for task, stated in currents.items():
            place = store.root / task / CURRENT
            if stated.exists() and not os.path.lexists(place):
                made.append(place)
                replace_current(stated, place.parent)
                flush(place.parent)
    except BaseException:
        for place in made:
            place.unlink(missing_ok=True)
        for source, place in moved:
            if not source.exists():
                place.rename(source)
        for task in {task for task, _ in new}:
            with suppress(OSError):  # it was there before, with other versions
                (store.root / task).rmdir()
        raise
