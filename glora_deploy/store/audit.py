"""Every file of a store held against what is stated about it, and the bytes each task takes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import ArtifactError, GloraDeployError
from .artifact import ADAPTER, MANIFEST, Artifact
from .backbone_config import require_agreement, require_intact_config
from .companions import COMPANION_RECORD, COMPANIONS, companion_problems
from .default_place import default_store
from .export_record import ExportRecord
from .fingerprint import fingerprint as fingerprint_of
from .folder_lock import OpenFolder
from .manifest import FileRecord
from .mapped_safetensors import map_tensors
from .reader import BACKBONE_WEIGHTS, BACKBONES, CURRENT, EXPORT_RECORD, EXPORTS, StoreReader

_LOST_AND_FOUND = "lost+found"
"""What ext4 keeps in the root of every volume, which may be that of a store."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a store that is not as it must be."""

    task: str | None
    """None for what belongs to no task."""
    version: str | None
    """None for what belongs to no version."""
    problem: str
    """One line that names the file and both sides."""


@dataclass(frozen=True, slots=True)
class TaskSize:
    """Bytes one task takes over all its versions; a hard-linked file counts once."""

    delta_bytes: int
    """Manifests, adapters and what lies beside them."""
    export_bytes: int
    """Everything under exports/."""


def audit(store: StoreReader, task: str) -> Iterator[Finding]:
    """Every problem of one task: names, manifests, deltas, exports and ``current``."""
    versions = store.versions(task)
    with store.steady():
        problems = list(_caught(_audit_task(store, task)))
    for problem in problems:
        yield Finding(task, None, problem)
    for version in versions:
        check = partial(_audit_version, store, task, version)
        for problem in _settled(store.root / task / version, check):
            yield Finding(task, version, problem)


def audit_rest(store: StoreReader) -> Iterator[Finding]:
    """Every problem of what belongs to no task: strays in the root, and the backbones."""
    with store.steady():
        problems = list(_caught(_audit_root(store)))
    for problem in (*problems, *_caught(_audit_backbones(store))):
        yield Finding(None, None, problem)


def without_backbone(store: StoreReader, task: str) -> Iterator[Finding]:
    """The versions of a task that cannot be exported because the store lacks their backbone."""
    for version in store.versions(task):
        check = partial(_lacks_backbone, store, task, version)
        for problem in _settled(store.root / task / version, check):
            yield Finding(task, version, problem)


def backbone_option(source: str) -> str:
    """The option of the command line that gives a backbone with this source.

    >>> backbone_option("timm:vit_base_patch16_224.augreg_in21k")
    '--backbone vit_base_patch16_224.augreg_in21k'
    """
    kind, _, name = source.partition(":")
    if kind in ("timm", "packaged"):
        return f"--backbone {name}"
    return f"--checkpoint {source if kind == 'random' else name}"


def store_option(root: Path) -> str:
    """The option of the command line for this store, after a space; empty for the default one.

    >>> store_option(Path("my models")), store_option(default_store())
    (" --store 'my models'", '')
    """
    return "" if root == default_store() else f" --store {shlex.quote(str(root))}"


def size_of(store: StoreReader, task: str) -> TaskSize:
    """Bytes on disk of one task.

    Raises:
        StoreError: If there is no such task.
    """
    store.require_task(task)
    seen: set[tuple[int, int]] = set()
    delta = export = 0
    for folder, _, names in os.walk(store.root / task):
        for name in names:
            path = Path(folder, name)
            try:
                status = path.lstat()
            except FileNotFoundError:  # removed or replaced meanwhile
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            parts = path.relative_to(store.root / task).parts
            if len(parts) > 2 and parts[1] == EXPORTS:
                export += status.st_size
            elif parts[-1] in (MANIFEST, ADAPTER, COMPANION_RECORD, *COMPANIONS):
                delta += status.st_size
    store.require_task(task)  # it may have been removed meanwhile
    return TaskSize(delta, export)


def _caught(check: Iterator[str]) -> Iterator[str]:
    """The problems a check yields, and as the last one the error that ends it."""
    try:
        yield from check
    except (GloraDeployError, OSError, ValueError) as error:
        yield str(error)


def _settled(folder: Path, check: Callable[[], Iterator[str]]) -> list[str]:
    """The problems of a folder that another process may remove or replace while it is checked.

    Of one that is gone there are none; one that took its place is checked instead.
    """
    while True:
        try:
            opened = OpenFolder(folder)
        except OSError:  # a file, or a link that leads nowhere, is to be reported
            return list(_caught(check())) if os.path.lexists(folder) else []
        with opened:
            problems = list(_caught(check()))
            if not problems or opened.in_place():
                return problems


def _audit_root(store: StoreReader) -> Iterator[str]:
    for name in _strays(store.root, {*store.tasks(), _LOST_AND_FOUND}):
        path = store.root / name
        # A process that died before its first version was in place leaves an empty folder.
        if not name.startswith(".") and not (path.is_dir() and not any(path.iterdir())):
            yield f"{path}: is not a task. Move it away."


def _audit_backbones(store: StoreReader) -> Iterator[str]:
    for name in _entries(store, store.root / BACKBONES):
        check = partial(_audit_backbone, store, name)
        yield from _settled(store.root / BACKBONES / name, check)


def _audit_backbone(store: StoreReader, fingerprint: str) -> Iterator[str]:
    folder = store.backbone_path(fingerprint)
    found = fingerprint_of(map_tensors(folder / BACKBONE_WEIGHTS))
    if found != fingerprint:
        yield f"{folder}: its tensors have fingerprint {found[:12]}... Remove it."
    require_intact_config(folder)


def _audit_task(store: StoreReader, task: str) -> Iterator[str]:
    folder, versions = store.root / task, store.version_names(task)
    if not versions:  # removed meanwhile
        return
    for name in _strays(folder, {*versions, CURRENT}):
        yield f"{folder / name}: is not part of a store. Move it away."
    current = store.current(task)
    if current is not None and current not in versions:
        raise store.none_current(task, current)


def _audit_version(store: StoreReader, task: str, version: str) -> Iterator[str]:
    folder = store.root / task / version
    for name in _strays(folder, {MANIFEST, ADAPTER, EXPORTS, COMPANION_RECORD, *COMPANIONS}):
        yield f"{folder / name}: is not part of an artifact. Move it away."
    artifact = store.get(task, version)
    artifact.tensors()
    yield from companion_problems(folder, artifact.manifest.adapter)
    for precision in _entries(store, folder / EXPORTS):
        yield from _settled(
            folder / EXPORTS / precision, partial(_audit_export, store, artifact, precision)
        )
    fingerprint = artifact.manifest.backbone.fingerprint
    if store.keeps_backbone(fingerprint):
        require_agreement(artifact, store.backbone_path(fingerprint))


def _lacks_backbone(store: StoreReader, task: str, version: str) -> Iterator[str]:
    try:
        backbone = store.get(task, version).manifest.backbone
    except ArtifactError:  # verify says so
        return
    if not store.keeps_backbone(backbone.fingerprint):
        yield (
            f"{task}/{version}: cannot be exported, its backbone {backbone.source} "
            f"({backbone.fingerprint[:12]}..) is not in {store.root}. Copy "
            f"{BACKBONES}/{backbone.fingerprint} from the store that the task comes from, or "
            f"export it once: glora export --task {task} --version {version}"
            f"{store_option(store.root)} {backbone_option(backbone.source)}"
        )


def _audit_export(store: StoreReader, artifact: Artifact, precision: str) -> Iterator[str]:
    folder = store.export_dir(artifact, precision)
    path = store.inside(folder / EXPORT_RECORD)
    record = ExportRecord.read(folder)
    if record is None:
        raise ArtifactError(f"{path}: must be a file, none is here. Export it again.")
    record.require_of(folder, artifact.manifest, precision)
    there = set(_file_names(folder)) - {EXPORT_RECORD}
    altered = record.files.keys() - there
    for name in sorted(altered):
        yield f"{folder / name}: must be here by {EXPORT_RECORD}. Export it again."
    for name in sorted(there - record.files.keys()):
        yield f"{folder / name}: is not in {EXPORT_RECORD}. Export it again."
    for name in sorted(there & record.files.keys()):
        try:
            found = FileRecord.of_file(store.inside(folder / name))
            record.files[name].require_equal(found, str(folder / name), EXPORT_RECORD)
        except (GloraDeployError, OSError) as error:
            altered.add(name)
            yield str(error)
    if not altered:
        record.require_borne_out(folder)


def _entries(store: StoreReader, folder: Path) -> list[str]:
    """Names in a folder of the store that may be missing."""
    try:
        return _strays(store.inside(folder), set())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _strays(folder: Path, known: set[str]) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def _file_names(folder: Path) -> list[str]:
    """Every file below a folder, links included, as paths in it with ``/``; links not followed."""
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in (*names, *(n for n in folders if Path(parent, n).is_symlink()))
    )
