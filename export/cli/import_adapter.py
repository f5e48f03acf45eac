"""``import``: an adapter that was trained elsewhere into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glora_deploy.console import one_line_errors, stdout
from glora_deploy.data.text_file import read_names
from glora_deploy.options import CurrentOption, QuietOption, StoreOption, named
from glora_deploy.program import examples
from glora_deploy.store.default_place import DEFAULT_STORE
from glora_deploy.store.store import ArtifactStore

from .each_task import UNCHANGED
from .given_backbone import (
    DEFAULT_BACKBONE,
    BackboneNameOption,
    InputSizeOption,
    require_named,
)
from .options import CheckpointOption, RevisionOption, TokenOption
from .progress import steps

if TYPE_CHECKING:  # they bring torch
    from glora_deploy.backbones.load import Backbone

    from ..importers.assemble import Imported
    from ..importers.authors_checkpoint import Checkpoint
    from ..importers.peft import Adapter


@examples(
    "adapters/peft-svhn --task svhn",
    "glora.pt --task svhn --subnet subnet.json --labels labels.txt",
)
def import_adapter(
    source: Annotated[
        str,
        typer.Argument(help="PEFT folder or user/name on the Hub, or a .pt of the GLoRA authors."),
    ],
    task: Annotated[str, typer.Option(help="Task to store it as.", callback=named("task"))],
    backbone: BackboneNameOption = DEFAULT_BACKBONE,
    checkpoint: CheckpointOption = None,
    input_size: InputSizeOption = None,
    store: StoreOption = DEFAULT_STORE,
    subnet: Annotated[
        Path | None, typer.Option(help="With a .pt: file that says which subnet to take.")
    ] = None,
    head: Annotated[
        Path | None, typer.Option(help="safetensors with the classifier, if the adapter has none.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with one class name a line, in order.")
    ] = None,
    make_current: CurrentOption = True,
    revision: RevisionOption = None,
    token: TokenOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring a PEFT adapter or an authors' GLoRA checkpoint into the store as a task.

    Everything then works as for our own deltas. LoRA, DoRA and GLoRA of PEFT are merged to the same
    weights that PEFT merges to; other methods are refused with the reason.
    """
    with one_line_errors(UNCHANGED):
        _require_subnet(source, subnet)
        size = require_named(backbone, checkpoint, input_size)
        from glora_deploy.backbones.load import load_backbone

        from ..importers.assemble import store_import

        with steps(task, quiet) as on_step:
            # Fetching a backbone takes long: what can be wrong without one is found before.
            on_step("reading the adapter")
            found = _read(source, subnet, head, revision, token, on_step)
            names = read_names(labels) if labels else None
            on_step("loading the backbone")
            loaded = load_backbone(backbone, checkpoint=checkpoint, input_size=size)
            imported = _on_backbone(found, loaded)
            artifact = store_import(
                ArtifactStore.create(store),
                loaded,
                imported,
                task=task,
                labels=names,
                make_current=make_current,
            )
        for note in imported.notes:
            stdout.print(note, soft_wrap=True)
        stdout.print(f"{artifact.path}: {artifact.task} {artifact.version}", soft_wrap=True)


def _require_subnet(source: str, subnet: Path | None) -> None:
    """Refuse a .pt without the file that says which of its subnets to take."""
    if not source.lower().endswith(".pt") or subnet is not None:
        return
    from ..importers.detect_lycoris import refuse_lycoris

    refuse_lycoris(Path(source))  # it will not do with a subnet either
    raise typer.BadParameter("a .pt needs one: it holds every subnet", param_hint="--subnet")


def _read(
    source: str,
    subnet: Path | None,
    head: Path | None,
    revision: str | None,
    token: str | None,
    on_step: Callable[[str], None],
) -> Checkpoint | Adapter:
    """What the user gave: the authors' checkpoint if a subnet of it is named, else PEFT's."""
    if subnet is not None:
        from ..importers.authors_checkpoint import read_checkpoint

        return read_checkpoint(Path(source), subnet)
    from ..importers.peft import read_adapter

    return read_adapter(source, head=head, revision=revision, token=token, on_step=on_step)


def _on_backbone(found: Checkpoint | Adapter, backbone: Backbone) -> Imported:
    """The delta of a backbone that it amounts to."""
    from ..importers.authors_checkpoint import Checkpoint, import_glora
    from ..importers.peft import import_peft

    if isinstance(found, Checkpoint):
        return import_glora(found, backbone)
    return import_peft(found, backbone)
