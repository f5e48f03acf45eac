"""``glora use`` and ``glora rollback``: which version of a task answers."""

from __future__ import annotations

import typer

from ..console import one_line_errors, stdout
from ..options import OptionalVersionArgument, StoreOption, TaskArgument
from ..program import examples
from ..store.default_place import DEFAULT_STORE


@examples("digits v2", "digits/v2")
def use(
    task: TaskArgument,
    version: OptionalVersionArgument = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make a version the one that answers."""
    if version is None:
        raise typer.BadParameter(f"name one of {task}", param_hint="VERSION")
    from ..store.store import ArtifactStore

    with one_line_errors():
        artifact = ArtifactStore.open(store).set_current(task, version)
        stdout.print(f"{artifact.task}: {artifact.version} is current")


@examples("digits")
def rollback(task: TaskArgument, store: StoreOption = DEFAULT_STORE) -> None:
    """Make the version created before the current one the one that answers."""
    from ..store.store import ArtifactStore

    with one_line_errors():
        artifact = ArtifactStore.open(store).rollback(task)
        stdout.print(f"{artifact.task}: {artifact.version} is current")
