"""All trainings of a task side by side, as they are recorded, with a version or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..cost_cells import cost_cells
from ..store.comparisons import ComparisonRecord
from ..store.cost_record import CostRecord
from ..store.manifest import Manifest
from .blocks import Section, Table, percent


def versions_section(
    task: str,
    manifests: Sequence[Manifest],
    *,
    reported: str,
    current: str | None,
    damaged: Sequence[str],
    costs: Mapping[str, CostRecord] | None = None,
    others: Sequence[ComparisonRecord] = (),
) -> Section:
    """The table of versions.

    Args:
        task: Its name.
        manifests: Of every version that can be read, oldest first.
        reported: The version that the report is about.
        current: The version that answers; None if none does.
        damaged: Versions whose manifest cannot be read.
        costs: Of versions, where they are recorded.
        others: What was trained for comparison alone.
    """
    costs = costs or {}
    rows = [
        _row(each, costs.get(each.version), reported=reported, current=current)
        for each in manifests
    ]
    rows += map(_row_of_other, others)
    lead = "What each training recorded; the test accuracies are those of its own test images."
    if any(row[-1] for row in rows):
        lead += (
            " Peak MB is the memory of the training; ms are those of one image in a batch, timed "
            "after it: in the network that it merges into, and in the one that was trained."
        )
    lead += f" {', '.join(damaged)}: the manifest cannot be read." if damaged else ""
    table = Table(
        caption=f"Versions of {task}, oldest first",
        head=_HEAD,
        rows=tuple(rows),
        numbers=frozenset(range(3, len(_HEAD))),
    )
    return Section(name="versions", title="Versions", lead=lead, blocks=(table,))


_HEAD = (
    *("version", "stored", "method", "validation", "test", "parameters", "kB", "seconds"),
    *("peak MB", "ms merged", "ms unmerged"),
)


def _row(
    manifest: Manifest, cost: CostRecord | None, *, reported: str, current: str | None
) -> tuple[str, ...]:
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
        *cost_cells(cost),
    )


def _row_of_other(other: ComparisonRecord) -> tuple[str, ...]:
    return (
        f"{other.name} (comparison)",
        other.created[:10],
        other.method,
        percent(other.val_accuracy),
        percent(other.test_accuracy),
        f"{other.n_parameters:,}",
        "" if other.checkpoint is None else f"{other.checkpoint.size_bytes / 1000:,.0f}",
        f"{other.seconds:,.0f}",
        *cost_cells(other.cost, merges=other.checkpoint is not None),
    )
