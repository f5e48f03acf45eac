"""``extract``: a fully fine-tuned network into the store, as a delta."""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glora_deploy.byte_size import to_bytes
from glora_deploy.console import (
    one_line_errors,
    print_table,
    progress_bars,
    stdout,
    wrong_usage_of,
)
from glora_deploy.data.text_file import read_names
from glora_deploy.evaluation.choices import Split
from glora_deploy.image_bars import ImageBars
from glora_deploy.options import (
    CurrentOption,
    JsonOption,
    QuietOption,
    StoreOption,
    named,
)
from glora_deploy.program import examples
from glora_deploy.store.default_place import DEFAULT_STORE

from ..importers.extract_choice import Choice
from .each_task import UNCHANGED
from .given_backbone import (
    DEFAULT_BACKBONE,
    BackboneNameOption,
    InputSizeOption,
    require_named,
)
from .options import CheckpointOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glora_deploy.store.artifact import Artifact

    from ..importers.agreement import Agreement
    from ..importers.extract import Extraction
    from ..importers.full_checkpoint import Tuned

DEFAULT_ENERGY = 0.9
SIZE, ANSWERS = "What is kept", "Answers"


@examples(
    "model_best.pth.tar --task pets  # 90 % of what changed",
    "tuned.safetensors --task pets --budget 2MB --data folder:photos",
    "tuned.safetensors --task pets --rank 16 --leave-out --labels labels.txt",
    "tuned.safetensors --task pets --energy 0.99 --verbose",
)
def extract(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The tuned network: .safetensors or .pth, or FILE#PART of one."
        ),
    ],
    task: Annotated[str, typer.Option(help="Task to store it as.", callback=named("task"))],
    backbone: BackboneNameOption = DEFAULT_BACKBONE,
    checkpoint: CheckpointOption = None,
    input_size: InputSizeOption = None,
    store: StoreOption = DEFAULT_STORE,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Share of the squared change to keep, above 0 to 1; this decides if nothing else "
            "does.",
            show_default=str(DEFAULT_ENERGY),
            rich_help_panel=SIZE,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest delta, such as 2MB.", rich_help_panel=SIZE),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="One rank for every layer, where its change has as much.", rich_help_panel=SIZE
        ),
    ] = None,
    leave_out: Annotated[
        bool,
        typer.Option(
            "--leave-out",
            help="Go without what no layer can take over, such as pos_embed.",
            rich_help_panel=SIZE,
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Text file with one class name a line, in order; those of --data by default."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Images to compare the answers on: built-in name, folder:PATH, lists:PATH or "
            "vtab:PATH.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(
            help="Of the data; all is all of them.", rich_help_panel=ANSWERS, show_default="test"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="That drew the splits of the data when the network was tuned.",
            rich_help_panel=ANSWERS,
            show_default="0",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images computed at once.", rich_help_panel=ANSWERS)
    ] = 32,
    make_current: CurrentOption = True,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say what each layer has, and what it would need.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a full fine-tuning of a backbone into a delta of it, and measure what that loses.

    Biases, norms and the classifier are stored as they are; what changed in each weight is cut off
    to a low rank by its singular values. How far the delta's answers are from the network's is
    measured and told before anything is stored.
    """
    for option, value in (("--split", split), ("--seed", seed)):
        if data is None and value is not None:
            raise typer.BadParameter("must go with --data", param_hint=option)
    with one_line_errors(UNCHANGED):
        with wrong_usage_of("--energy, --budget, --rank"):
            budget_bytes = None if budget is None else to_bytes(budget)
            if (energy, budget_bytes, rank) == (None, None, None):
                energy = DEFAULT_ENERGY
            choice = Choice(energy=energy, budget_bytes=budget_bytes, rank=rank)
        size = require_named(backbone, checkpoint, input_size)
        from glora_deploy.backbones.load import load_backbone
        from glora_deploy.evaluation.labelled_images import load_images
        from glora_deploy.store.store import ArtifactStore

        from ..importers.agreement import Networks
        from ..importers.assemble import store_import
        from ..importers.extract import extract_full
        from ..importers.full_checkpoint import read_full, require_all

        images = None
        if data is not None:
            images = load_images(data=data, split=split or "test", seed=seed)
        names = read_names(labels) if labels else None
        if names is None and images is not None:
            names = images.classes
        loaded = load_backbone(backbone, checkpoint=checkpoint, input_size=size)
        tuned = read_full(source, loaded)
        if not leave_out:
            require_all(tuned)
        _require_names(tuned, names, "--labels" if labels else "--data")
        with progress_bars(quiet=quiet) as bars:
            show = ImageBars(bars).show
            found = extract_full(tuned, loaded, choice, report=partial(show, "decompose"))
            networks = Networks(loaded, tuned, found.imported)
            agreements = {"random inputs": networks.on_random()}
            if images is not None:
                agreements[f"{images.split} images of {images.data}"] = networks.on_images(
                    images,
                    tuple(names or ()),
                    batch_size=batch_size,
                    report=partial(show, "answer"),
                )
        artifact = store_import(
            ArtifactStore.create(store),
            loaded,
            found.imported,
            task=task,
            labels=names,
            make_current=make_current,
        )
    if as_json:
        told = {
            "task": artifact.task,
            "version": artifact.version,
            "delta_bytes": artifact.manifest.adapter.size_bytes,
            "n_parameters": artifact.manifest.n_parameters,
            "network_bytes": _network_bytes(tuned),
            "left_out": tuned.left_out,
            **found.to_dict(),
            "agreement": {where: each.to_dict() for where, each in agreements.items()},
        }
        typer.echo(json.dumps(told, ensure_ascii=False, allow_nan=False))
    elif not quiet:
        _print(tuned, found, agreements, artifact, verbose=verbose)
        if names is None:
            stdout.print(
                f"the classes are called {artifact.manifest.labels[0]} to "
                f"{artifact.manifest.labels[-1]}: --labels or --data would name them"
            )


def _require_names(tuned: Tuned, names: Sequence[str] | None, given: str) -> None:
    """Refuse another number of class names before minutes go into decompositions."""
    if names is not None and len(names) != tuned.n_classes:
        raise ValueError(
            f"{given} must have one name for each of the {tuned.n_classes} classes of "
            f"{tuned.where}, got {len(names)}"
        )


def _network_bytes(tuned: Tuned) -> int:
    return sum(values.nbytes for values in tuned.tensors.values())


def _print(
    tuned: Tuned,
    found: Extraction,
    agreements: dict[str, Agreement],
    artifact: Artifact,
    *,
    verbose: bool,
) -> None:
    from ..importers.low_rank import SHARES

    if verbose:
        columns = ("layer", "rank", *(f"for {share:.1%}" for share in SHARES), "full", "kept")
        rows = [
            (
                each.name,
                str(each.rank),
                *map(str, each.needed),
                str(each.full),
                f"{each.energy:.1%}",
            )
            for each in found.layers
        ]
        print_table("Ranks that each change has, and would need", columns, rows, right=columns[1:])
    for name, change in tuned.left_out.items():
        stdout.print(f"left out: {name}, which changed by {change:.1%} of its norm", soft_wrap=True)
    ranks = sorted(each.rank for each in found.layers) or [0]
    stdout.print(
        f"{len(found.layers)} weights changed; ranks {ranks[0]} to {ranks[-1]}, median "
        f"{statistics.median(ranks):g}, keep {found.energy:.2%} of the squared change",
        soft_wrap=True,
    )
    for index, share in enumerate(SHARES):
        needed = sorted(each.needed[index] for each in found.layers) or [0]
        stdout.print(
            f"  {share:.1%} in every layer would need ranks {needed[0]} to {needed[-1]}, median "
            f"{statistics.median(needed):g}"
        )
    size, whole = artifact.manifest.adapter.size_bytes, _network_bytes(tuned)
    stdout.print(
        f"delta {size / 1e6:,.2f} MB, the network {whole / 1e6:,.2f} MB ({size / whole:.1%})"
    )
    if not found.imported.layers:
        stdout.print("nothing differs from the backbone but the classifier: was it tuned from it?")
    elif size > whole:
        stdout.print("the delta is larger than the network: such ranks gain nothing")
    for where, each in agreements.items():
        told = f"{where}: {each.same:.1%} of {each.n_images:,} answered alike"
        told += f", logits differ by at most {each.largest:.2g} of their spread"
        if each.accuracy is not None:
            told += f"; accuracy {each.accuracy:.1%}, the delta's {each.extracted_accuracy:.1%}"
        stdout.print(told, soft_wrap=True)
    stdout.print(f"{artifact.path}: {artifact.task} {artifact.version}", soft_wrap=True)
