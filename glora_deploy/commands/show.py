"""``glora show``: one version in full."""

from __future__ import annotations

import typer

from ..console import one_line_errors
from ..options import OptionalVersionArgument, StoreOption, TaskArgument
from ..program import examples
from ..store.default_place import DEFAULT_STORE


@examples("digits", "digits v1")
def show(
    task: TaskArgument,
    version: OptionalVersionArgument = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """One version in full: its manifest, as stored."""
    from ..store.store import ArtifactStore

    with one_line_errors():
        artifact = ArtifactStore.open(store).get(task, version)
        typer.echo(artifact.manifest.to_json().decode(), nl=False)
