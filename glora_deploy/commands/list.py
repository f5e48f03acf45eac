"""``glora list``: every version of every task in a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from ..console import make_table, one_line_errors, stdout
from ..errors import ArtifactError, NotInStoreError
from ..options import StoreOption
from ..precision import Precision
from ..store.default_place import DEFAULT_STORE
from .sizes import artifacts_of, mb, merged_bytes

if TYPE_CHECKING:
    from ..store.artifact import Artifact
    from ..store.store import ArtifactStore


def list_versions(store: StoreOption = DEFAULT_STORE) -> None:
    """Every version of every task: accuracy, size, what was exported and whether it is proven."""
    from ..store.store import ArtifactStore

    with one_line_errors():
        opened = ArtifactStore.open(store)
        rows = [row for task in opened.tasks() for row in _rows(opened, task)]
        columns = (
            "artifact",
            "method",
            "test",
            "parameters",
            "delta",
            "merged",
            "parity",
        )
        title = (
            f"{store}: * is current; test accuracy, support parameters, sizes in MB,\n"
            "parity as the worst error of any stage, a share of the logits' spread"
        )
        whole = ("artifact", "parameters", "parity")
        stdout.print(make_table(title, columns, rows, right=columns[2:6], whole=whole))


def _rows(store: ArtifactStore, task: str) -> Iterator[tuple[str, ...]]:
    try:
        current = store.current(task)
    except NotInStoreError:  # removed meanwhile
        return
    for artifact in artifacts_of(store, task):
        training = artifact.manifest.training
        accuracy = training.test_accuracy
        yield (
            f"{task}/{artifact.version}{'*' if artifact.version == current else ''}",
            training.method,
            "" if accuracy is None else f"{accuracy:.1%}",
            f"{artifact.manifest.n_parameters:,}",
            mb(artifact.manifest.adapter.size_bytes),
            _merged_mb(store, artifact),
            _parity(store, artifact),
        )


def _merged_mb(store: ArtifactStore, artifact: Artifact) -> str:
    size_bytes = merged_bytes(store, artifact)
    return mb(size_bytes) if size_bytes else "unknown"


def _parity(store: ArtifactStore, artifact: Artifact) -> str:
    """For each export, its verdict and largest error, a line each: ``fp32 3e-06``."""
    from ..store.export_record import ExportRecord

    found = []
    for precision in get_args(Precision):
        folder = store.export_dir(artifact, precision)
        if not folder.is_dir():
            continue
        try:
            record = ExportRecord.read(folder)
            report = record.report(folder) if record else None
        except (ArtifactError, OSError):  # one damaged export must not hide the rest of the store
            record = None
        if record is None:
            # It may have been removed meanwhile.
            found += [f"{precision} damaged"] if folder.is_dir() else []
            continue
        if record.adapter_sha256 != artifact.manifest.adapter.sha256:
            found.append(f"{precision} of another delta")
            continue
        if report is None:
            continue
        errors = [c.error for step in report.steps for c in step.comparisons[:1]]
        verdict = f"{max(errors, default=0):.0e}" if report.passed else "FAIL"
        found.append(f"{precision} {verdict}")
    return "\n".join(found) or "not exported"
