"""All versions of a task side by side, as their manifests record them."""

from __future__ import annotations

from collections.abc import Sequence

from ..store.manifest import Manifest
from .blocks import Section, Table, percent


def versions_section(
    task: str,
    manifests: Sequence[Manifest],
    *,
    reported: str,
    current: str | None,
    damaged: Sequence[str],
) -> Section:
    """The table of versions.

    Args:
        task: Its name.
        manifests: Of every version that can be read, oldest first.
        reported: The version that the report is about.
        current: The version that answers; None if none does.
        damaged: Versions whose manifest cannot be read.
    """
    rows = tuple(_row(each, reported=reported, current=current) for each in manifests)
    left = f" {', '.join(damaged)}: the manifest cannot be read." if damaged else ""
    lead = (
        "What each training recorded; the test accuracies are those of its own test images." + left
    )
    table = Table(
        caption=f"Versions of {task}, oldest first",
        head=("version", "stored", "method", "validation", "test", "parameters", "kB", "seconds"),
        rows=rows,
        numbers=frozenset(range(3, 8)),
    )
    return Section(name="versions", title="Versions", lead=lead, blocks=(table,))


def _row(manifest: Manifest, *, reported: str, current: str | None) -> tuple[str, ...]:
    training = manifest.training
    told = ["shown here"] if manifest.version == reported else []
    told += ["current"] if manifest.version == current else []
    return (
        f"{manifest.version} ({', '.join(told)})" if told else manifest.version,
        manifest.created[:10],
        training.method,
        percent(training.val_accuracy),
        percent(training.test_accuracy),
        f"{manifest.n_parameters:,}",
        f"{manifest.adapter.size_bytes / 1000:,.0f}",
        "" if training.seconds is None else f"{training.seconds:,.0f}",
    )
