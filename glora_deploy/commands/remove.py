"""``glora remove``: a version, or a whole task, out of the store."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import one_line_errors, stdout
from ..options import StoreOption, TaskArgument, complete_version, named
from ..program import examples
from ..store.default_place import DEFAULT_STORE


@examples("digits v1", "digits --force  # every version of it")
def remove(
    task: TaskArgument,
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="VERSION",
            help="The whole task, with --force, if left out.",
            autocompletion=complete_version,
            callback=named("version"),
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    force: Annotated[
        bool, typer.Option("--force", help="Remove a current version, or a whole task.")
    ] = False,
) -> None:
    """Remove a version and its exports."""
    if version is None and not force:
        raise typer.BadParameter(
            f"{task}: name a version, or give --force to remove the whole task",
            param_hint="VERSION",
        )
    from ..store.store import ArtifactStore

    with one_line_errors():
        ArtifactStore.open(store).remove(task, version, force=force)
        stdout.print(f"removed {task}{'' if version is None else f'/{version}'}")
