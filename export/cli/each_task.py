"""A command done for each task that it names: the loop, opening a task, its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from glora_deploy.console import one_line_errors
from glora_deploy.interrupt import INTERRUPTED
from glora_deploy.parity import DEFAULT_LIMITS, Limits
from glora_deploy.precision import Precision
from glora_deploy.quiet import only_errors
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore

UNCHANGED = "interrupted; the store is as it was"


def for_each(tasks: list[str], act: Callable[[str], None]) -> None:
    """Do every task, saying on one line which failed.

    Raises:
        typer.Exit: With 1 if any failed, at once if the user interrupts.
    """
    failed = False
    for task in dict.fromkeys(tasks):
        try:
            with one_line_errors(UNCHANGED):
                act(task)
        except typer.Exit as stop:
            if stop.exit_code == INTERRUPTED:
                raise
            failed = True
    if failed:
        raise typer.Exit(1)


def open_task(
    root: Path,
    task: str,
    version: str | None,
    backbone: str | None,
    checkpoint: Path | None,
    *,
    quiet: bool,
) -> tuple[ArtifactStore, Artifact]:
    """The store and the artifact; a backbone given by hand is checked and kept."""
    store = ArtifactStore.open(root)
    artifact = store.get(task, version)
    if backbone or checkpoint:
        from glora_deploy.backbones.load import load_backbone

        from ..stored_backbone import provide_backbone

        recorded = artifact.manifest.backbone
        with only_errors(quiet):
            loaded = load_backbone(
                backbone or recorded.name,
                checkpoint=checkpoint,
                input_size=recorded.input_size[1:],
                model_args=recorded.model_args,
            )
            provide_backbone(store, artifact.manifest, loaded)
    return store, artifact


def limits_with(precision: Precision, max_error: float | None) -> dict[Precision, Limits]:
    """The default limits, with another ``max_error`` for one precision."""
    limits = dict(DEFAULT_LIMITS)
    if max_error is not None:
        limits[precision] = limits[precision].model_copy(update={"max_error": max_error})
    return limits
