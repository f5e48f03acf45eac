"""export.json: what an export folder holds, what it came from, and whether to trust it.

An export is copied as easily as any folder, so its record is tied to the artifact it was made
from: every reader checks it with ``require_of`` before it believes another word (docs/format.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from ..errors import ArtifactError
from ..parity import PARITY_FILE, Report
from ..precision import PRECISIONS, Precision, is_float
from ..record_file import read_bytes, read_record
from ..strict_record import Record, short
from .artifact import ADAPTER, MANIFEST
from .manifest import Manifest
from .manifest_fields import FileRecord, Sha256, utc_now
from .mapped_safetensors import read_layout
from .reader import EXPORT_RECORD

Format = Literal["merged", "delta", "onnx", "pixels", "int8", "trt"]
"""In the order they are made."""
LIBRARIES = ("glora-deploy", "torch", "timm", "onnx", "safetensors", "numpy")

WEIGHTS_FILE = "model.safetensors"
"""The merged weights; the initializers of ``MODEL_FILE`` lie in it."""
CONFIG_FILE = "config.json"
"""timm's configuration of the merged network."""
MODEL_FILE = "model.onnx"
PIXELS_FILE = "model.pixels.onnx"
"""The same network behind its preprocessing: decoded pixels in, probabilities out."""
INT8_FILE = "model.int8.onnx"
INT8_REPORT_FILE = "int8.json"
PLAN_FILE = "model.plan"
SIDECAR_FILE = "plan.json"
"""What a plan was built from and where it runs."""
DELTA_FOLDER = "delta"
"""The delta in the precision of the export."""

FILES: Mapping[Format, tuple[str, ...]] = {
    "merged": (CONFIG_FILE, WEIGHTS_FILE),
    "delta": (f"{DELTA_FOLDER}/{ADAPTER}", f"{DELTA_FOLDER}/{MANIFEST}"),
    "onnx": (MODEL_FILE,),
    "pixels": (PIXELS_FILE,),
    "int8": (INT8_FILE, INT8_REPORT_FILE),
    "trt": (PLAN_FILE, SIDECAR_FILE),
}
"""The files of each format; what a graph reads its weights from belongs to ``merged``."""

_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
FilePath = Annotated[str, Field(pattern=rf"^{_NAME}(/{_NAME})*$", max_length=200)]


class ExportRecord(Record):
    """All of export.json."""

    task: str
    version: str
    precision: Precision
    created: str
    """UTC."""
    adapter_sha256: Sha256
    """Of the delta these files were made from."""
    backbone_fingerprint: Sha256
    manifest_digest: Sha256 | None = None
    """``Manifest.digest`` of the artifact; older releases did not state it."""
    formats: tuple[Format, ...]
    """Those whose files are all here, in the order of ``Format``."""
    usable: bool
    """Whether every parity step passed; a server refuses an export that is not."""
    versions: dict[str, str]
    """Library to version."""
    files: dict[FilePath, FileRecord]
    """Path below the folder, ``/`` between parts, to size and sha256; all but this file."""

    @classmethod
    def of_folder(
        cls, folder: Path, manifest: Manifest, precision: Precision, *, usable: bool
    ) -> ExportRecord:
        """Describe the files that lie in a folder now; each is read once for its digest."""
        files = {name: FileRecord.of_file(folder / name) for name in sorted(_files(folder))}
        return cls(
            task=manifest.task,
            version=manifest.version,
            precision=precision,
            created=utc_now(),
            adapter_sha256=manifest.adapter.sha256,
            backbone_fingerprint=manifest.backbone.fingerprint,
            manifest_digest=manifest.digest(),
            formats=formats_of(files),
            usable=usable,
            versions={library: version(library) for library in LIBRARIES},
            files=files,
        )

    def of_copies(self, names: Mapping[str, str]) -> ExportRecord:
        """The record of a folder that holds copies of some of the files.

        Args:
            names: Names here to names there.
        """
        files = {names[name]: each for name, each in sorted(self.files.items()) if name in names}
        return self.model_copy(update={"files": files, "formats": formats_of(files)})

    @classmethod
    def read(cls, folder: Path) -> ExportRecord | None:
        """The record of an export folder; None if there is no export.

        Raises:
            ArtifactError: If export.json is damaged, or contradicts itself.
        """
        path = folder / EXPORT_RECORD
        return read_record(cls, path, "Export it again.") if path.is_file() else None

    @classmethod
    def usable_of(
        cls, folder: Path, manifest: Manifest, precision: Precision, written: Format
    ) -> ExportRecord | None:
        """The record of an artifact's export that passed its parity check and holds a format.

        Args:
            folder: Of the export.
            manifest: Of the artifact.
            precision: Of the export.
            written: The format.

        Returns:
            None if there is no such export.

        Raises:
            ArtifactError: If the record is damaged, or of another artifact.
        """
        record = cls.read(folder)
        if record is None or not record.usable or written not in record.formats:
            return None
        record.require_of(folder, manifest, precision)
        return record

    def write(self, folder: Path) -> None:
        """Write export.json into the folder."""
        (folder / EXPORT_RECORD).write_bytes(self.to_json())

    def require_of(self, folder: Path, manifest: Manifest, precision: str) -> None:
        """Check that this export was made from this artifact in this precision.

        Args:
            folder: Named in the error.
            manifest: Of the artifact.
            precision: Of the folder.

        Raises:
            ArtifactError: If it was made from anything else; names the field and both sides.
        """
        digest = manifest.digest()
        for field, stated, expected in (
            ("task", self.task, manifest.task),
            ("version", self.version, manifest.version),
            ("precision", self.precision, precision),
            ("adapter_sha256", self.adapter_sha256, manifest.adapter.sha256),
            (
                "backbone_fingerprint",
                self.backbone_fingerprint,
                manifest.backbone.fingerprint,
            ),
            # An older release did not state it; the adapter's sha256 still ties the two together.
            ("manifest_digest", self.manifest_digest or digest, digest),
        ):
            if stated != expected:
                raise ArtifactError(
                    f"{folder / EXPORT_RECORD}: {field} must be {_brief(expected)}, that of "
                    f"{manifest.task}/{manifest.version} in {precision}, got {_brief(stated)}. "
                    "Export it again."
                )

    def require_intact(self, folder: Path, name: str) -> None:
        """Check one file against its record.

        Raises:
            ArtifactError: If it is missing or altered; names both sides.
        """
        path = folder / name
        if name not in self.files or not path.is_file():
            raise ArtifactError(f"{path}: must be a file, none is here. Export it again.")
        self.files[name].require_equal(FileRecord.of_file(path), str(path), EXPORT_RECORD)

    def report(self, folder: Path) -> Report | None:
        """The parity report beside this record, once it is this export's; None without one.

        Raises:
            ArtifactError: If it is damaged, or of another export; names both sides.
        """
        if PARITY_FILE not in self.files:
            return None
        path = folder / PARITY_FILE
        found = Report.from_json(read_bytes(path), str(path))
        for field in ("task", "version", "precision", "adapter_sha256"):
            stated, expected = getattr(found, field), getattr(self, field)
            if stated != expected:
                raise ArtifactError(
                    f"{path}: {field} must be {_brief(expected)}, that of {EXPORT_RECORD}, "
                    f"got {_brief(stated)}. Export it again."
                )
        return found

    def require_borne_out(self, folder: Path) -> None:
        """Check what the record says of its files against what they themselves say.

        Raises:
            ArtifactError: If it is usable without a parity report that passed, the report is of
                another export, or the merged weights are not numbers of the precision.
        """
        report = self.report(folder)
        if self.usable and not (report and report.passed):
            raise ArtifactError(
                f"{folder / EXPORT_RECORD}: usable must be false without a {PARITY_FILE} that "
                "passed, got true. Export it again."
            )
        if "merged" in self.formats:
            require_precision(folder, self.precision)

    @model_validator(mode="after")
    def _formats_follow(self) -> ExportRecord:
        expected = formats_of(self.files)
        if self.formats != expected:
            raise ValueError(
                f"formats must be {list(expected)}, those whose files are here, "
                f"got {list(self.formats)}"
            )
        return self


def formats_of(names: Collection[str]) -> tuple[Format, ...]:
    """The formats that these files of an export folder make up, in the order they are made.

    >>> formats_of(["config.json", "model.onnx", "model.safetensors"])
    ('merged', 'onnx')
    """
    return tuple(name for name in get_args(Format) if set(FILES[name]) <= set(names))


def require_precision(folder: Path, precision: Precision) -> None:
    """Check that the merged weights of an export folder are numbers of its precision.

    Only the header of the file is read.

    Raises:
        ArtifactError: If a float tensor has another dtype, or it is no safetensors file.
    """
    path, expected = folder / WEIGHTS_FILE, PRECISIONS[precision]
    for name, place in read_layout(path).items():
        if is_float(place.dtype) and place.dtype != expected:
            raise ArtifactError(
                f"{path}: {name} must be {expected} in {precision}, got {place.dtype}. "
                "Export it again."
            )


def _brief(text: str) -> str:
    """A text as it stands; of a digest, enough to tell it."""
    return f"{text[:12]}.." if len(text) == 64 else short(text)


def _files(folder: Path) -> Iterator[str]:
    return (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != EXPORT_RECORD
    )
