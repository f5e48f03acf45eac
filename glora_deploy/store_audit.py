"""Every file of a store held against what is stated about it, and the bytes each task takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .artifact import ADAPTER, MANIFEST, Artifact, read_bytes
from .errors import ArtifactError, GloraDeployError
from .fingerprint import fingerprint as fingerprint_of
from .manifest import MAX_MANIFEST_BYTES, FileRecord, first_problem
from .store_read import (
    BACKBONE_CONFIG,
    BACKBONE_WEIGHTS,
    BACKBONES,
    CURRENT,
    EXPORT_RECORD,
    EXPORTS,
    StoreReader,
)
from .tensor_file import map_tensors


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
    """Manifests and adapters."""
    export_bytes: int
    """Everything under exports/."""


class _StatedFiles(BaseModel):
    """The one part of export.json that every exporter states; the rest is its own."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    files: dict[str, FileRecord]
    """Every other file of the folder, by its path in it with ``/`` between the parts."""


def audit(store: StoreReader, task: str) -> Iterator[Finding]:
    """Every problem of one task: names, manifests, deltas, exports and ``current``."""
    versions = store.versions(task)
    for problem in _caught(_audit_task(store, task, versions)):
        yield Finding(task, None, problem)
    for version in versions:
        for problem in _caught(_audit_version(store, task, version)):
            yield Finding(task, version, problem)


def audit_rest(store: StoreReader) -> Iterator[Finding]:
    """Every problem of what belongs to no task: strays in the root, and the backbones."""
    for problem in _caught(_audit_root(store)):
        yield Finding(None, None, problem)


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
            status = path.lstat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            parts = path.relative_to(store.root / task).parts
            if len(parts) > 2 and parts[1] == EXPORTS:
                export += status.st_size
            elif parts[-1] in (MANIFEST, ADAPTER):
                delta += status.st_size
    return TaskSize(delta, export)


def _caught(check: Iterator[str]) -> Iterator[str]:
    """The problems a check yields, and as the last one the error that ends it."""
    try:
        yield from check
    except (GloraDeployError, OSError, ValueError) as error:
        yield str(error)


def _audit_root(store: StoreReader) -> Iterator[str]:
    for name in _strays(store.root, set(store.tasks())):
        path = store.root / name
        # A process that died before its first version was in place leaves an empty folder.
        if not name.startswith(".") and not (path.is_dir() and not any(path.iterdir())):
            yield f"{path}: is not a task. Move it away."
    for name in _entries(store, store.root / BACKBONES):
        yield from _caught(_audit_backbone(store, name))


def _audit_backbone(store: StoreReader, fingerprint: str) -> Iterator[str]:
    folder = store.backbone_path(fingerprint)
    found = fingerprint_of(map_tensors(folder / BACKBONE_WEIGHTS))
    if found != fingerprint:
        yield f"{folder}: its tensors have fingerprint {found[:12]}... Remove it."
    if not (folder / BACKBONE_CONFIG).is_file():
        yield f"{folder}: must hold {BACKBONE_CONFIG}. Remove it."


def _audit_task(store: StoreReader, task: str, versions: list[str]) -> Iterator[str]:
    folder = store.root / task
    for name in _strays(folder, {*versions, CURRENT}):
        yield f"{folder / name}: is not part of a store. Move it away."
    if store.current(task) is not None:
        store.require_current(task)


def _audit_version(store: StoreReader, task: str, version: str) -> Iterator[str]:
    folder = store.root / task / version
    for name in _strays(folder, {MANIFEST, ADAPTER, EXPORTS}):
        yield f"{folder / name}: is not part of an artifact. Move it away."
    artifact = store.get(task, version)
    artifact.tensors()
    for precision in _entries(store, folder / EXPORTS):
        yield from _caught(_audit_export(store, artifact, precision))


def _audit_export(store: StoreReader, artifact: Artifact, precision: str) -> Iterator[str]:
    folder = store.export_dir(artifact, precision)
    path = store.inside(folder / EXPORT_RECORD)
    try:
        stated = _StatedFiles.model_validate_json(read_bytes(path, MAX_MANIFEST_BYTES)).files
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}. Export it again.") from error
    there = set(_file_names(folder)) - {EXPORT_RECORD}
    for name in sorted(stated.keys() - there):
        yield f"{folder / name}: must be here by {EXPORT_RECORD}. Export it again."
    for name in sorted(there - stated.keys()):
        yield f"{folder / name}: is not in {EXPORT_RECORD}. Export it again."
    for name in sorted(there & stated.keys()):
        try:
            found = FileRecord.of_file(store.inside(folder / name))
            stated[name].require_equal(found, str(folder / name), EXPORT_RECORD)
        except (GloraDeployError, OSError) as error:
            yield str(error)


def _entries(store: StoreReader, folder: Path) -> list[str]:
    """Names in a folder of the store that may be missing."""
    return _strays(store.inside(folder), set()) if folder.is_dir() else []


def _strays(folder: Path, known: set[str]) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def _file_names(folder: Path) -> list[str]:
    """Every file below a folder, links included, as paths in it with ``/``; links not followed."""
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in (*names, *(n for n in folders if Path(parent, n).is_symlink()))
    )
