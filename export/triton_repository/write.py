"""A model repository for Triton Inference Server: several tasks, each switched in one step.

::

    <repository>/<task>/config.pbtxt, labels.txt, warmup/image
    <repository>/<task>/<n>/source.json                          which artifact version n is
    <repository>/<task>/<n>/model.onnx/model.onnx                with external weights: a folder,
    <repository>/<task>/<n>/model.onnx/model.safetensors         which Triton's backend opens
    <repository>/<task>/<n>/model.onnx                           self-contained, as int8 is
    <repository>/<task>/<n>/model.plan

Model files are copied, never linked: onnx refuses external data with more than one name, and a
polling Triton loads a model again whenever the other name of a linked file comes or goes, since it
takes the change time of the inode for a modification.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from glora_deploy.errors import ExportError, ParityError
from glora_deploy.store.atomic_files import flush, flush_tree, replace_folder, write_durable
from glora_deploy.store.disk_space import space_for
from glora_deploy.store.export_record import (
    INT8_FILE,
    MODEL_FILE,
    PLAN_FILE,
    WEIGHTS_FILE,
    ExportRecord,
)
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.tensorrt_runtime.plan_json import Library, read_plan_info

from ..out_folder import require_no_export, scratch_in
from .config_pbtxt import (
    CONFIG,
    LABELS,
    VERSION_RECORD,
    WARMUP_FOLDER,
    WARMUP_IMAGE,
    TritonConfig,
    VersionRecord,
    config_text,
)
from .model_folder import read_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExport:
    """One task as it was exported."""

    manifest: Manifest
    folder: Path
    """Holds the files and their export.json."""


@dataclass(frozen=True, slots=True)
class TritonModel:
    """What a repository holds for a task now."""

    name: str
    version: int
    """The newest number, which answers by default."""
    folder: Path
    changed: bool
    """False if everything was there already."""


def write_triton(
    repository: Path,
    exports: Sequence[TaskExport],
    config: TritonConfig,
    *,
    version: int | None = None,
) -> list[TritonModel]:
    """Put tasks into a model repository, which is made if it is missing.

    Everything is checked and built first. Then each task's folder is exchanged in one step, and an
    error takes back those already exchanged; a process killed between two of these steps leaves
    some tasks new and the rest old, each of them whole, and running again completes them. Folders
    of other models are not touched.

    Args:
        repository: Folder of the repository.
        exports: One for each task.
        config: How to serve them.
        version: Number of the new version; by default one more than the highest there, or the
            highest itself if it holds the same files.

    Raises:
        ValueError: If a task is given twice or ``version`` is below 1.
        StoreError: If the folder holds a single export instead of models.
        ExportError: If a file that ``config.kind`` needs is not in an export, Triton could not
            load it, something of another origin is in the way or in a model's folder, or no space
            is left.
        ParityError: If an export failed its parity check.
        ArtifactError: If a file is not the one its export recorded.
    """
    names = [export.manifest.task for export in exports]
    if len(set(names)) < len(names):
        raise ValueError(f"exports must be of different tasks, got {', '.join(sorted(names))}")
    if version is not None and version < 1:
        raise ValueError(f"version must be at least 1, got {version}")
    require_no_export(repository)
    sources = [_inspect(export, config) for export in exports]
    room = space_for("the new models", repository, "repository", ExportError)
    with room, _alone(repository), _scratch(repository) as scratch:
        models = [
            _build(scratch, repository / source.record.task, source, config, version)
            for source in sources
        ]
        flush_tree(scratch)
        for model in models:
            read_versions(model.folder)  # it may have got other files since
        _exchange([scratch / model.name for model in models if model.changed], repository)
    return models


def require_library(library: Library, plan: Path | str) -> None:
    """Refuse a plan of another library than Triton's backend is made of.

    Args:
        library: That built it, or is going to.
        plan: Its name, for the message.

    Raises:
        ExportError: If it is not TensorRT.
    """
    if library != "tensorrt":
        raise ExportError(
            f"{plan}: must be built by tensorrt for Triton's backend, got {library}. Build it with "
            "tensorrt, which needs a GPU, or leave out --fmt trt to serve the ONNX model."
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """A checked export: what to copy, and what the copy is."""

    record: VersionRecord
    files: dict[str, Path]
    """Path below the version's folder to the file it is a copy of."""


def _inspect(export: TaskExport, config: TritonConfig) -> _Source:
    folder, manifest = export.folder, export.manifest
    stated = ExportRecord.read(folder)
    if stated is None:
        raise ExportError(f"{folder}: must be a finished export, none is here. Export it first.")
    stated.require_of(folder, manifest, stated.precision)
    if not stated.usable:
        raise ParityError(
            f"{folder}: must have passed its parity check, it failed. "
            "Read parity.json and export it again."
        )
    needed = _needed_files(folder, config)
    for name in needed.values():
        stated.require_intact(folder, name)
    capabilities = _plan_capabilities(folder, config) if config.kind == "plan" else ()
    files = {place: stated.files[name] for place, name in needed.items()}
    return _Source(
        VersionRecord.of(manifest, stated.precision, config.kind, files, capabilities),
        {place: folder / name for place, name in needed.items()},
    )


def _needed_files(folder: Path, config: TritonConfig) -> dict[str, str]:
    """Path below the version's folder to the name in the export."""
    match config.kind:
        case "plan":
            name, fix = PLAN_FILE, "Export it with --fmt trt."
            needed = {PLAN_FILE: PLAN_FILE}
        case "int8":
            name, fix = INT8_FILE, "Export it with --quantize int8."
            needed = {MODEL_FILE: INT8_FILE}
        case "onnx":
            name, fix = MODEL_FILE, "Export it with --fmt onnx."
            needed = {MODEL_FILE: MODEL_FILE}
    path = folder / name
    if not path.is_file():
        raise ExportError(f"{path}: must be a file, none is here. {fix}")
    if config.kind == "onnx":
        graph = onnx.load_model(path, load_external_data=False).graph
        if any(uses_external_data(weight) for weight in graph.initializer):
            needed = {f"{MODEL_FILE}/{name}": name for name in (MODEL_FILE, WEIGHTS_FILE)}
    return needed


def _plan_capabilities(folder: Path, config: TritonConfig) -> tuple[str, ...]:
    info = read_plan_info(folder)
    require_library(info.library, folder / PLAN_FILE)
    if info.stripped:
        raise ExportError(
            f"{folder / PLAN_FILE}: must hold its weights, which Triton cannot put in, got a "
            "stripped plan. Build it without --strip."
        )
    least, _, most = info.batch
    if least > 1 or config.max_batch_size > most:
        raise ExportError(
            f"{folder / PLAN_FILE}: must take batches of 1 to {config.max_batch_size}, got a plan "
            f"for {least} to {most}. Build it again with another --batch."
        )
    return () if info.hardware_compatibility == "ampere_plus" else info.compute_capabilities


def _build(
    scratch: Path, place: Path, source: _Source, config: TritonConfig, wanted: int | None
) -> TritonModel:
    """Build the new folder of one task, unless the present one says the same."""
    present = read_versions(place)
    newest = max(present, default=0)
    record = source.record
    same = newest > 0 and present[newest] == record and _is_whole(place / str(newest), record)
    number = wanted or (newest if same else newest + 1)
    if number < newest or (number == newest and not same):
        raise ExportError(
            f"{place}: version must be above {newest}, the newest there, got {number}. "
            "Leave it out to take the next."
        )
    kept = [n for n in sorted(present, reverse=True) if n < number]
    kept = [n for n in kept if present[n].answers_like(record)][: config.versions_kept - 1]
    new = scratch / place.name
    new.mkdir()
    _write_around(new, source, config, number, [place / str(n) for n in kept])
    model = TritonModel(place.name, number, place, changed=True)
    if number == newest:
        kept.append(number)
        if present.keys() == set(kept) and _around(new) == _around(place):
            return replace(model, changed=False)
    else:
        _copy_version(new / str(number), source)
    for n in kept:
        # These links lose their other name as soon as the old folder is gone.
        shutil.copytree(place / str(n), new / str(n), copy_function=os.link)
    return model


def _is_whole(folder: Path, record: VersionRecord) -> bool:
    return all(
        (folder / name).is_file() and FileRecord.of_file(folder / name) == file
        for name, file in record.files.items()
    )


def _copy_version(folder: Path, source: _Source) -> None:
    folder.mkdir()
    for name, original in source.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(original, folder / name)
    write_durable(folder / VERSION_RECORD, source.record.to_json())


def _write_around(
    folder: Path, source: _Source, config: TritonConfig, number: int, kept: Sequence[Path]
) -> None:
    """Write everything beside the versions."""
    record = source.record
    older = {version: VersionRecord.read(version) for version in kept}
    versions = {int(version.name): one for version, one in older.items()} | {number: record}
    md5 = {}
    if config.checksums:
        served = {f"{number}/{name}": path for name, path in source.files.items()}
        for version, one in older.items():
            served |= {f"{version.name}/{name}": version / name for name in one.files}
        md5 = {name: _md5(path) for name, path in sorted(served.items())}
    write_durable(folder / CONFIG, config_text(versions, config, md5).encode())
    write_durable(folder / LABELS, "".join(f"{label}\n" for label in record.labels).encode())
    if config.warmup:
        noise = np.random.default_rng(0).standard_normal(record.input_size, np.float32)
        (folder / WARMUP_FOLDER).mkdir()
        write_durable(folder / WARMUP_FOLDER / WARMUP_IMAGE, noise.astype("<f4").tobytes())


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _around(folder: Path) -> dict[Path, bytes]:
    """Every file beside the versions, by its path below the folder."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if not name.parts[0].isdecimal()}


def _exchange(folders: Sequence[Path], repository: Path) -> None:
    """Put every new folder into place, or none if that fails."""
    done: list[Path] = []
    try:
        for folder in folders:
            replace_folder(folder, repository / folder.name)
            done.append(folder)
    except BaseException:
        for folder in reversed(done):
            place = repository / folder.name
            if folder.exists():
                replace_folder(folder, place)
            else:
                place.rename(folder)
        raise
    finally:
        flush(repository)


@contextmanager
def _alone(repository: Path) -> Iterator[None]:
    """Make the repository, and wait for other exports into it to end."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ExportError(
            f"{repository}: the repository must be a folder, a file is in the way. "
            "Give another --out."
        ) from error
    handle = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _scratch(repository: Path) -> Iterator[Path]:
    """A folder on the repository's file system, removed at the end.

    It lies beside the repository where it can: Triton takes every folder inside for a model, hidden
    or not, and refuses to start with one that does not load, such as a killed export might leave.
    """
    repository = repository.resolve()
    parent = repository.with_name(f".{repository.name}.new")
    if os.path.ismount(repository) or not os.access(repository.parent, os.W_OK):
        parent = repository / ".new"
    with scratch_in(parent) as scratch:
        yield scratch
