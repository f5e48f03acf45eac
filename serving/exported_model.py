"""The ONNX model of an export: where it lies, what it is of, and whether to trust it.

What the model says of itself decides nothing alone: it must be what ``parity.json`` proved, and
what the manifest says wherever there is one: in a store, and in a repository that a push made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import (
    ArtifactError,
    ExportError,
    ParityError,
    StoreError,
)
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.precision import Precision
from glora_deploy.record_file import read_bytes
from glora_deploy.store.artifact import MANIFEST, read_artifact
from glora_deploy.store.export_record import MODEL_FILE, WEIGHTS_FILE, ExportRecord
from glora_deploy.store.manifest import MAX_MANIFEST_BYTES, Manifest
from glora_deploy.store.manifest_fields import Label, PreprocessingRecord
from glora_deploy.store.reader import EXPORT_RECORD, EXPORTS
from glora_deploy.store.store import ArtifactStore
from glora_deploy.strict_record import short

from .export_command import export_command
from .one_export import of_one_export
from .onnx_session import OnnxSession

HUB_FOLDER = "glora"
"""Folder of the delta in a repository on the Hub."""

_LABELS = TypeAdapter(tuple[Label, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model that was checked and loaded."""

    session: OnnxSession
    folder: Path
    task: str
    version: str
    precision: Precision
    delta_sha256: str
    """Of the adapter.safetensors that the model was made from."""
    labels: tuple[str, ...]
    """Class names; logit i is that of label i."""
    preprocessing: Preprocessing


def load_from_store(
    root: Path | str, task: str, version: str | None, precision: Precision, threads: int | None
) -> ExportedModel:
    """The model of a task's export in a store.

    Args:
        root: Of the store.
        task: Its name.
        version: The current one if None.
        precision: Of the export.
        threads: Threads within an operator; ONNX Runtime's own choice if None.

    Raises:
        StoreError: If store, task, version, export or model are not there.
        ArtifactError: If a file was altered, or is of another artifact.
        ParityError: If the export did not pass its parity check.
        ExportError: If ONNX Runtime refuses the model.
        MissingDependencyError: If ONNX Runtime is missing.
    """
    store = ArtifactStore.open(root)
    artifact = store.get(task, version)
    manifest = artifact.manifest
    folder = store.export_dir(artifact, precision)
    remedy = export_command(
        task, "onnx", precision, "--store", str(root), *(("--version", version) if version else ())
    )
    with _remedied(remedy, precision):
        return of_one_export(folder, lambda: _load_recorded(folder, manifest, precision, threads))


def load_from_folder(folder: Path, threads: int | None) -> ExportedModel:
    """The model of a folder that ``--out`` wrote, a push made, or a store holds as an export.

    Args:
        folder: Holds model.onnx and parity.json; what it reads its weights from lies beside it.
        threads: Threads within an operator; ONNX Runtime's own choice if None.

    Raises:
        StoreError: If it is no such folder, or holds no ONNX model.
        ArtifactError: If a file was altered, or the files are not of one export.
        ParityError: If the export did not pass its parity check.
        ExportError: If ONNX Runtime refuses the model.
        MissingDependencyError: If ONNX Runtime is missing.
    """
    if not (folder / PARITY_FILE).is_file():
        raise StoreError(
            f"{folder}: must be a folder that an export wrote, it has no {PARITY_FILE}. "
            f"Run: {export_command('TASK', 'onnx', 'fp32', '--out', str(folder))}"
        )
    report = _read_report(folder)
    where = ["--out", str(folder)]
    if root := _store_of(folder):  # where --out may not write
        where = ["--store", str(root), "--version", report.version]
    with _remedied(export_command(report.task, "onnx", report.precision, *where), report.precision):
        return of_one_export(folder, lambda: _load_bare(folder, threads))


def _store_of(folder: Path) -> Path | None:
    """The store whose export this folder is; None if it is a copy."""
    above = folder.absolute().parents
    if len(above) > 3 and above[0].name == EXPORTS and (above[1] / MANIFEST).is_file():
        return above[3]
    return None


def _load_bare(folder: Path, threads: int | None) -> ExportedModel:
    """The model of a folder, by the best proof that it has with it."""
    report = _read_report(folder)
    if (folder / EXPORT_RECORD).is_file():
        return _load_recorded(folder, None, report.precision, threads)
    _require_passed(folder, report)
    return _load(folder, report, _pushed_manifest(folder), threads)


def _load_recorded(
    folder: Path, manifest: Manifest | None, precision: Precision, threads: int | None
) -> ExportedModel:
    """The model of an export that has its export.json."""
    record = ExportRecord.read(folder)
    if record is None:
        raise StoreError(f"{folder}: no export is here.")
    if manifest is not None:
        record.require_of(folder, manifest, precision)
    if "onnx" not in record.formats:
        raise StoreError(f"{folder}: holds no {MODEL_FILE}.")
    for name in (PARITY_FILE, MODEL_FILE):
        record.require_intact(folder, name)
    if WEIGHTS_FILE in record.files or (folder / WEIGHTS_FILE).exists():
        record.require_intact(folder, WEIGHTS_FILE)  # else the graph holds its weights itself
    report = record.report(folder)
    assert report is not None  # it is intact
    _require_passed(folder, report)
    if not record.usable:
        raise ParityError(f"{folder / EXPORT_RECORD}: usable must be true, got false.")
    return _load(folder, report, manifest, threads)


def _load(
    folder: Path, report: Report, manifest: Manifest | None, threads: int | None
) -> ExportedModel:
    """Load the model of an export that passed, and check what it says of itself."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise StoreError(f"{folder}: holds no {MODEL_FILE}.")
    session = OnnxSession(path, threads)
    stated = session.metadata
    for key in ("task", "version", "precision"):
        _require(path, key, stated.get(key), getattr(report, key))
    labels, preprocessing = _described(path, session)
    if manifest is not None:
        _require(path, "adapter_sha256", report.adapter_sha256, manifest.adapter.sha256)
        _require(path, "labels", labels, manifest.labels)
        _require(path, "preprocessing", preprocessing, manifest.preprocessing)
    _require(path, "the shape of image", session.input_shape[1:], (3, *preprocessing.size))
    _require(path, "the shape of logits", session.output_shape[1:], (len(labels),))
    return ExportedModel(
        session=session,
        folder=folder,
        task=report.task,
        version=report.version,
        precision=report.precision,
        delta_sha256=report.adapter_sha256,
        labels=labels,
        preprocessing=Preprocessing(**preprocessing.model_dump()),
    )


def _described(path: Path, session: OnnxSession) -> tuple[tuple[str, ...], PreprocessingRecord]:
    """Labels and preprocessing, as the model's metadata states them."""
    try:
        labels = _LABELS.validate_json(session.metadata["labels"])
        images = PreprocessingRecord.model_validate_json(session.metadata["preprocessing"])
    except (KeyError, ValidationError) as error:
        raise ArtifactError(
            f"{path}: its metadata must state labels and preprocessing. Export it again."
        ) from error
    return labels, images


def _pushed_manifest(folder: Path) -> Manifest | None:
    """The manifest of the delta in a copy of a repository; None in any other folder."""
    delta = folder / HUB_FOLDER
    return read_artifact(delta).manifest if (delta / MANIFEST).is_file() else None


def _read_report(folder: Path) -> Report:
    path = folder / PARITY_FILE
    return Report.from_json(read_bytes(path, MAX_MANIFEST_BYTES), str(path))


def _require_passed(folder: Path, report: Report) -> None:
    try:
        report.require_passed()
    except ParityError as error:
        raise ParityError(f"{folder / PARITY_FILE}: {error}") from error


def _require(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ArtifactError(
            f"{path}: {what} must be {short(expected)}, got {short(found)}. Export it again."
        )


@contextmanager
def _remedied(command: str, precision: Precision) -> Iterator[None]:
    """Add the command that mends it to what is wrong with an export."""
    try:
        yield
    except ExportError as error:
        if precision == "bf16":  # made again, it would be refused again
            raise ExportError(
                f"{error} It may know no bf16 on CPUs: take the precision fp32 or fp16."
            ) from error
        raise ExportError(f"{error} Run: {command}") from error
    except (ArtifactError, ParityError, StoreError) as error:
        raise type(error)(f"{error} Run: {command}") from error
