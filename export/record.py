"""export.json: what an export folder holds, what it came from, and whether to trust it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from glora_deploy.errors import ArtifactError
from glora_deploy.manifest import Manifest
from glora_deploy.parity import Precision
from glora_deploy.records import FileRecord, first_problem, utc_now
from glora_deploy.store_read import EXPORT_RECORD

Format = Literal["merged", "delta", "onnx", "int8", "trt"]
"""In the order they are made."""
LIBRARIES = ("glora-deploy", "torch", "timm", "onnx", "safetensors", "numpy")


class ExportRecord(BaseModel):
    """All of export.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    version: str
    precision: Precision
    created: str
    """UTC."""
    adapter_sha256: str
    """Of the delta these files were made from."""
    backbone_fingerprint: str
    formats: tuple[Format, ...]
    usable: bool
    """Whether every parity step passed; a server refuses an export that is not."""
    versions: dict[str, str]
    """Library to version."""
    files: dict[str, FileRecord]
    """Path below the folder, ``/`` between parts, to size and sha256; all but this file."""

    @classmethod
    def of_folder(
        cls,
        folder: Path,
        manifest: Manifest,
        precision: Precision,
        formats: tuple[Format, ...],
        *,
        usable: bool,
    ) -> ExportRecord:
        """Describe the files that lie in a folder now; each is read once for its digest."""
        return cls(
            task=manifest.task,
            version=manifest.version,
            precision=precision,
            created=utc_now(),
            adapter_sha256=manifest.adapter.sha256,
            backbone_fingerprint=manifest.backbone.fingerprint,
            formats=formats,
            usable=usable,
            versions={library: version(library) for library in LIBRARIES},
            files={name: FileRecord.of_file(folder / name) for name in sorted(_files(folder))},
        )

    @classmethod
    def read(cls, folder: Path) -> ExportRecord | None:
        """The record of an export folder; None if there is no export.

        Raises:
            ArtifactError: If export.json is damaged.
        """
        path = folder / EXPORT_RECORD
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ArtifactError(f"{path}: {first_problem(error)}. Export it again.") from error

    def write(self, folder: Path) -> None:
        """Write export.json into the folder."""
        (folder / EXPORT_RECORD).write_text(self.model_dump_json(indent=1) + "\n", "utf-8")

    def require_intact(self, folder: Path, name: str) -> None:
        """Check one file against its record.

        Raises:
            ArtifactError: If it is missing or altered; names both sides.
        """
        path = folder / name
        if name not in self.files or not path.is_file():
            raise ArtifactError(f"{path}: must be a file, none is here. Export it again.")
        self.files[name].require_equal(FileRecord.of_file(path), str(path), EXPORT_RECORD)


def _files(folder: Path) -> Iterator[str]:
    return (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != EXPORT_RECORD
    )
