"""What was exported of a version, and whether it is proven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import ArtifactError
from ..precision import Precision

if TYPE_CHECKING:
    from ..store.artifact import Artifact
    from ..store.store import ArtifactStore

State = Literal["proven", "failed", "unproven", "damaged", "of another delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportState:
    """One export: of what precision and formats, and what its parity report says."""

    precision: str
    state: State
    formats: tuple[str, ...] = ()
    error: float | None = None
    """Largest of any stage, as a share of the logits' spread; None where none was measured."""

    def __str__(self) -> str:
        match self.state:
            case "proven":
                return f"{self.precision} {self.error or 0:.0e}"
            case "failed":
                return f"{self.precision} FAIL"
        return f"{self.precision} {self.state}"

    def fields(self) -> dict[str, object]:
        """JSON-ready."""
        return asdict(self)


def exports_of(store: ArtifactStore, artifact: Artifact) -> Iterator[ExportState]:
    """Every export of a version; one that is damaged does not hide the others."""
    from ..store.export_record import ExportRecord

    for precision in get_args(Precision):
        folder = store.export_dir(artifact, precision)
        if not folder.is_dir():
            continue
        try:
            record = ExportRecord.read(folder)
            report = record.report(folder) if record else None
        except (ArtifactError, OSError):
            record = None
        if record is None:
            if folder.is_dir():  # else it was removed meanwhile
                yield ExportState(precision=precision, state="damaged")
            continue
        if record.adapter_sha256 != artifact.manifest.adapter.sha256:
            yield ExportState(precision=precision, state="of another delta")
            continue
        if report is None:
            yield ExportState(precision=precision, state="unproven", formats=record.formats)
            continue
        errors = [c.error for step in report.steps for c in step.comparisons[:1]]
        yield ExportState(
            precision=precision,
            state="proven" if report.passed else "failed",
            formats=record.formats,
            error=max(errors, default=None),
        )
