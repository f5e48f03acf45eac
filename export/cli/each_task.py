"""A command done for each task that it names: the loop, opening a task, its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from glora_deploy.console import one_line_errors, wrong_usage_of
from glora_deploy.interrupt import INTERRUPTED
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
        from glora_deploy.backbones.checkpoint_name import require_recordable
        from glora_deploy.backbones.load import outline

        from ..stored_backbone import provide_named_backbone

        if backbone:
            with wrong_usage_of("--backbone"):
                outline(backbone)
        if checkpoint:
            with wrong_usage_of("--checkpoint"):
                require_recordable(checkpoint)
        with only_errors(quiet):
            provide_named_backbone(store, artifact.manifest, backbone, checkpoint)
    return store, artifact
