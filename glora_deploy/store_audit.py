"""Every file of a store held against what is stated about it, and the bytes each task takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .artifact import ADAPTER, MANIFEST, read_bytes
from .errors import ArtifactError, GloraDeployError, StoreError
from .fingerprint import fingerprint
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
    folder = store.root / task
    for name in _strays(folder, {*versions, CURRENT}):
        yield Finding(task, None, f"{folder / name}: is not part of a store. Move it away.")
    try:
        current = store.current(task)
        if current is not None and current not in versions:
            raise StoreError(
                f"{folder / CURRENT}: names {current}, versions here: {', '.join(versions)}. "
                "Make a version current again."
            )
    except (StoreError, OSError) as error:
        yield Finding(task, None, str(error))
    for version in versions:
        for problem in _audit_version(store, task, version):
            yield Finding(task, version, problem)


def audit_rest(store: StoreReader) -> Iterator[Finding]:
    """Every problem of what belongs to no task: strays in the root, and the backbones."""
    for name in _strays(store.root, set(store.tasks())):
        if not name.startswith("."):
            yield Finding(None, None, f"{store.root / name}: is not a task. Move it away.")
    folder = store.inside(store.root / BACKBONES)
    for name in _strays(folder, set()) if folder.is_dir() else ():
        try:
            found = fingerprint(map_tensors(store.backbone_path(name) / BACKBONE_WEIGHTS))
            if found != name:
                raise ArtifactError(f"its tensors have fingerprint {found[:12]}... Remove it.")
            if not (folder / name / BACKBONE_CONFIG).is_file():
                raise ArtifactError(f"{BACKBONE_CONFIG} must be here. Remove the folder.")
        except (GloraDeployError, OSError, ValueError) as error:
            yield Finding(None, None, f"{folder / name}: {error}")


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


def _audit_version(store: StoreReader, task: str, version: str) -> Iterator[str]:
    folder = store.root / task / version
    for name in _strays(folder, {MANIFEST, ADAPTER, EXPORTS}):
        yield f"{folder / name}: is not part of an artifact. Move it away."
    try:
        artifact = store.get(task, version)
        artifact.tensors()
    except (GloraDeployError, OSError) as error:
        yield str(error)
        return
    exports = folder / EXPORTS
    for precision in _strays(exports, set()) if exports.is_dir() else ():
        try:
            place = store.export_dir(artifact, precision)
            problems = list(_audit_export(store, place))
        except (GloraDeployError, OSError) as error:
            problems = [str(error)]
        yield from problems


def _audit_export(store: StoreReader, folder: Path) -> Iterator[str]:
    path = store.inside(folder / EXPORT_RECORD)
    data = read_bytes(path, MAX_MANIFEST_BYTES)
    try:
        stated = _StatedFiles.model_validate_json(data).files
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}. Export it again.") from error
    there = set(_file_names(folder)) - {EXPORT_RECORD}
    for name in sorted(stated.keys() - there):
        yield f"{folder / name}: must be here by {EXPORT_RECORD}. Export it again."
    for name in sorted(there - stated.keys()):
        yield f"{folder / name}: is not in {EXPORT_RECORD}. Export it again."
    for name in sorted(there & stated.keys()):
        try:
            file = store.inside(folder / name)
            stated[name].require_equal(FileRecord.of_file(file), str(file), EXPORT_RECORD)
        except (GloraDeployError, OSError) as error:
            yield str(error)


def _strays(folder: Path, known: set[str]) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def _file_names(folder: Path) -> list[str]:
    """Every file below a folder, links included, as paths in it with ``/``; links not followed."""
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in (*names, *(n for n in folders if Path(parent, n).is_symlink()))
    )
