"""``pull`` and ``import``: deltas that come from elsewhere into the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glora_deploy.backbones.input_size import parse_size
from glora_deploy.console import one_line_errors, stdout, wrong_usage_of
from glora_deploy.data.text_file import read_names
from glora_deploy.quiet import only_errors
from glora_deploy.store.reader import require_slug
from glora_deploy.store.store import ArtifactStore

from .common import (
    UNCHANGED,
    CheckpointOption,
    QuietOption,
    RevisionOption,
    StoreOption,
    TokenOption,
    hub_steps,
    steps,
)


def pull(
    repo: Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub.")],
    store: StoreOption = Path("artifacts"),
    task: Annotated[
        str | None, typer.Option(help="Name in this store; the pushed one by default.")
    ] = None,
    revision: RevisionOption = None,
    checkpoint: CheckpointOption = None,
    token: TokenOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring a pushed delta from the Hub into the store, verified, as a new current version."""
    with one_line_errors(UNCHANGED):
        from ..hub.push_pull import pull as pull_delta

        on_step = hub_steps(quiet)
        with only_errors(quiet):
            artifact = pull_delta(
                ArtifactStore(store),
                repo,
                revision=revision,
                task=task,
                checkpoint=checkpoint,
                token=token,
                on_step=on_step,
            )
        stdout.print(f"{artifact.path}: {artifact.task} {artifact.version}", soft_wrap=True)


def import_adapter(
    source: Annotated[
        str,
        typer.Argument(help="PEFT folder or user/name on the Hub, or a .pt of the GLoRA authors."),
    ],
    task: Annotated[str, typer.Option(help="Task to store it as.")],
    backbone: Annotated[
        str, typer.Option(help="timm name of the backbone it was trained on.")
    ] = "vit_base_patch16_224",
    checkpoint: CheckpointOption = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the input in pixels, or HEIGHTxWIDTH, if not the model's own.",
        ),
    ] = None,
    store: StoreOption = Path("artifacts"),
    subnet: Annotated[
        Path | None, typer.Option(help="With a .pt: file that says which subnet to take.")
    ] = None,
    head: Annotated[
        Path | None, typer.Option(help="safetensors with the classifier, if the adapter has none.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with one class name a line, in order.")
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring a PEFT adapter or an authors' GLoRA checkpoint into the store as a task.

    Everything then works as for our own deltas. LoRA, DoRA and GLoRA of PEFT are merged to the same
    weights that PEFT merges to; other methods are refused with the reason.
    """
    with one_line_errors(UNCHANGED):
        with wrong_usage_of("--input-size"):
            size = parse_size(input_size) if input_size else None
        if source.lower().endswith(".pt") and subnet is None:
            from ..importers.detect_lycoris import refuse_lycoris

            refuse_lycoris(Path(source))  # it will not do with a subnet either
            raise typer.BadParameter(
                "a .pt needs one: it holds every subnet", param_hint="--subnet"
            )
        require_slug("task", task)
        from glora_deploy.backbones.load import load_backbone

        from ..importers.assemble import store_import
        from ..importers.authors_checkpoint import Checkpoint, import_glora, read_checkpoint
        from ..importers.peft import Adapter, import_peft, read_adapter

        with steps(task, quiet) as on_step:
            # Fetching a backbone takes long: what can be wrong without one is found before.
            on_step("reading the adapter")
            found: Checkpoint | Adapter
            if subnet is not None:
                found = read_checkpoint(Path(source), subnet)
            else:
                found = read_adapter(
                    source, head=head, revision=revision, token=token, on_step=on_step
                )
            names = read_names(labels) if labels else None
            on_step("loading the backbone")
            loaded = load_backbone(backbone, checkpoint=checkpoint, input_size=size)
            if isinstance(found, Checkpoint):
                imported = import_glora(found, loaded)
            else:
                imported = import_peft(found, loaded)
            artifact = store_import(
                ArtifactStore.create(store), loaded, imported, task=task, labels=names
            )
        for note in imported.notes:
            stdout.print(note, soft_wrap=True)
        stdout.print(f"{artifact.path}: {artifact.task} {artifact.version}", soft_wrap=True)
