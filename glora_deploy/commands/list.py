"""``glora list``: every version of every task in a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from ..console import one_line_errors, print_table, stderr
from ..errors import NotInStoreError
from ..options import JsonOption, OptionalTaskArgument, StoreOption
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .exports import exports_of
from .sizes import artifacts_of, mb, merged_bytes

if TYPE_CHECKING:
    from ..store.artifact import Artifact
    from ..store.comparisons import ComparisonRecord
    from ..store.store import ArtifactStore


@examples("", "digits", "--json")
def list_versions(
    task: OptionalTaskArgument = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Every version of every task: accuracy, size, what was exported and whether it is proven."""
    from ..store.comparisons import comparisons, damaged_comparisons
    from ..store.store import ArtifactStore

    with one_line_errors():
        opened = ArtifactStore.open(store)
        if task is not None:
            opened.require_task(task)
        listed = [*_listed(opened, opened.tasks() if task is None else [task])]
        if as_json:
            typer.echo(json.dumps([_fields(opened, *each) for each in listed], indent=1))
            return
        columns = ("artifact", "created", "method", "val", "test", "parameters", "MB", "parity")
        title = (
            f"{store}\n* is current; val and test: accuracy; parameters and MB: of the delta;\n"
            "parity: the worst error of an export's stages, a share of the logits' spread"
        )
        rows = [_row(opened, *each) for each in listed]
        rows += [_row_of(each) for each in comparisons(store) if task in (None, each.task)]
        whole = ("artifact", "created", "parameters", "parity")
        print_table(title, columns, rows, right=columns[3:7], whole=whole)
        for (of_task, _), problem in damaged_comparisons(store).items():
            if task in (None, of_task):
                stderr.print(f"note: {problem}", soft_wrap=True)


def _row_of(record: ComparisonRecord) -> tuple[str, ...]:
    """One line of the table for a training that left no version."""
    return (
        f"{record.task}/{record.name}",
        record.created[:10],
        record.method,
        percent(record.val_accuracy),
        percent(record.test_accuracy),
        f"{record.n_parameters:,}",
        "",
        "cannot merge" if record.checkpoint is None else "a checkpoint",
    )


def _listed(store: ArtifactStore, tasks: list[str]) -> Iterator[tuple[Artifact, bool]]:
    """Every version, and whether it is current."""
    for task in tasks:
        try:
            current = store.current(task)
        except NotInStoreError:  # removed meanwhile
            continue
        for artifact in artifacts_of(store, task):
            yield artifact, artifact.version == current


def _row(store: ArtifactStore, artifact: Artifact, is_current: bool) -> tuple[str, ...]:
    manifest, training = artifact.manifest, artifact.manifest.training
    return (
        f"{artifact.task}/{artifact.version}{'*' if is_current else ''}",
        manifest.created[:10],
        training.method,
        percent(training.val_accuracy),
        percent(training.test_accuracy),
        f"{manifest.n_parameters:,}",
        mb(manifest.adapter.size_bytes),
        "\n".join(map(str, exports_of(store, artifact))) or "no export",
    )


def _fields(store: ArtifactStore, artifact: Artifact, is_current: bool) -> dict[str, object]:
    manifest, training = artifact.manifest, artifact.manifest.training
    return {
        "task": artifact.task,
        "version": artifact.version,
        "current": is_current,
        "created": manifest.created,
        "method": training.method,
        "val_accuracy": training.val_accuracy,
        "test_accuracy": training.test_accuracy,
        "n_parameters": manifest.n_parameters,
        "n_head_parameters": manifest.n_head_parameters,
        "delta_bytes": manifest.adapter.size_bytes,
        "merged_bytes": merged_bytes(store, artifact) or None,
        "exports": [each.fields() for each in exports_of(store, artifact)],
    }


def percent(share: float | None) -> str:
    """A share of 0 to 1; empty if it is not known.

    >>> percent(0.5), percent(None)
    ('50.0%', '')
    """
    return "" if share is None else f"{share:.1%}"
