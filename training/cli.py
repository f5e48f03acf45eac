"""``glora train``: train a task and store its delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import TaskID

from glora_deploy.console import (
    make_table,
    one_line_errors,
    progress_bars,
    stderr,
    stdout,
)
from glora_deploy.options import CurrentOption, QuietOption, StoreOption
from glora_deploy.plain_progress import Progress
from glora_deploy.program import app_of, examples
from glora_deploy.store.default_place import DEFAULT_STORE

from .config import DeviceName, Method, Schedule
from .config_file import take_config
from .options import choice, parse_count, parse_numbers, parsed, wrong_settings

if TYPE_CHECKING:  # it brings torch, which --help and wrong usage do without
    from .pipeline import Outcome


@examples(
    "--task digits",
    "--task digits --compare-lora --max-parameters 50k",
    "--config artifacts/digits/v1/run.toml --seed 1 --no-current",
    "--task pets --data folder:photos/pets --backbone vit_small_patch16_224",
    "--task birds --data folder:birds --split train=train,val=0.2,test=val "
    "--backbone vit_small_patch16_224",
    "--task svhn --data vtab:vtab-1k/svhn --schedule paper --max-parameters 1M "
    "--backbone vit_base_patch16_224.orig_in21k",
)
def train(
    task: Annotated[str, typer.Option(help="Name under which the store keeps the task.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Built-in name (digits, photos, position, orientation), folder:PATH, lists:PATH "
            "or vtab:PATH. By default the built-in task of the same name."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Where the splits come from, if the names of folders or lists do not say it: for "
            "val and test a place below PATH or a share of train, such as "
            "train=train,val=0.2,test=val."
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Leave images out that cannot be read."),
    ] = False,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Train although one picture is in two splits; the accuracies are then too high.",
        ),
    ] = False,
    allow_empty_classes: Annotated[
        bool,
        typer.Option("--allow-empty-classes", help="Train although a class has no training image."),
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Any timm model, or demo-vit, a toy that ships with the package and is the "
            "default of the built-in tasks."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Local weights of the backbone: .safetensors, .npz or .pth, or random:SEED. "
            "By default its pretrained ones."
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the input in pixels, or HEIGHTxWIDTH; the backbone's by default.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    version: Annotated[
        str | None, typer.Option(help="Name of the new version; v1, v2, ... by default.")
    ] = None,
    make_current: CurrentOption = True,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            dir_okay=False,
            is_eager=True,
            expose_value=False,
            callback=take_config,
            help="TOML file of options by their names, for what the command line leaves out. Each "
            "version has one beside it, STORE/TASK/VERSION/run.toml, that repeats it.",
        ),
    ] = None,
    method: Annotated[
        Method,
        choice(
            Method,
            help="glora: supernet and search. lora: one fixed subnet.",
        ),
    ] = "glora",
    schedule: Annotated[
        Schedule,
        choice(
            Schedule,
            help="short: for minutes on a CPU. paper: the published recipe, 500 epochs and a "
            "search of 1,050 subnets.",
        ),
    ] = "short",
    epochs: Annotated[int | None, typer.Option(help="Epochs; the schedule's by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate; short takes 0.01 on demo-vit, else 0.001."),
    ] = None,
    drop_path: Annotated[float | None, typer.Option(help="Drop path of the deepest block.")] = None,
    ranks: Annotated[
        str | None,
        typer.Option(help="Ranks on offer to lora paths, such as 8,4; one with --method lora."),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Kinds of layer to adapt, of linear,conv,affine.")
    ] = "linear",
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of layer names to adapt; may be repeated. By default all, or with "
            "--method lora those called qkv."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of layers to leave alone; may be repeated.")
    ] = None,
    max_parameters: Annotated[
        str | None,
        typer.Option(help="Most numbers a subnet may store, such as 150000, 150k or 0.5M."),
    ] = None,
    population: Annotated[int | None, typer.Option(help="Subnets per generation.")] = None,
    generations: Annotated[
        int | None, typer.Option(help="Generations after the first random one.")
    ] = None,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="After the search, train again on train and val together."),
    ] = False,
    compare_lora: Annotated[
        bool,
        typer.Option(
            "--compare-lora",
            help="Also train plain LoRA for the same time; stored as another version, not current.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Every draw of the run follows from it.")] = 0,
    device: Annotated[
        DeviceName,
        choice(
            DeviceName,
            help="Where to compute; auto takes CUDA where there is one.",
        ),
    ] = "auto",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Fail unless there is an interrupted run of this task to go on with. Where it "
            "was asked for the same, it is gone on with in any case.",
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Discard an interrupted run of this task, and start anew."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a task on a frozen backbone and store its delta.

    A GLoRA supernet is trained on the training split, searched for its best subnet on the
    validation split, and the subnet is tested once on the test split. The same command again goes
    on with a run that was interrupted.
    """
    from . import api  # it reads the built-in tasks, and so brings Pillow

    with (
        one_line_errors("interrupted; the same command goes on where it stopped"),
        wrong_settings(),
        progress_bars(quiet=quiet) as bars,
    ):
        outcomes = api.train(
            task,
            data=data,
            split=split,
            skip_unreadable=skip_unreadable,
            allow_duplicates=allow_duplicates,
            allow_empty_classes=allow_empty_classes,
            backbone=backbone,
            checkpoint=checkpoint,
            input_size=input_size,
            store=store,
            version=version,
            make_current=make_current,
            method=method,
            schedule=schedule,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            drop_path=drop_path,
            ranks=parsed("--ranks", parse_numbers, ranks),
            layers=layers,
            include=include,
            exclude=exclude,
            max_parameters=parsed("--max-parameters", parse_count, max_parameters),
            population=population,
            generations=generations,
            retrain=retrain,
            compare_lora=compare_lora,
            seed=seed,
            device=device,
            resume=resume,
            restart=restart,
            report=_Bars(bars),
            tell=_tell,
        )
    _print(outcomes, store, make_current=make_current)


class _Bars:
    """Progress stage by stage; one begins where it is first heard of, be that half way."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._stages: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if stage in self._stages:
            self._bars.update(self._stages[stage], completed=done, note=note)
        else:
            self._stages[stage] = self._bars.add_task(stage, total=total, completed=done, note=note)


def _tell(line: str) -> None:
    """A line on stderr, above the bars."""
    stderr.print(line, highlight=False, soft_wrap=True)


def _print(outcomes: list[Outcome], store: Path, *, make_current: bool) -> None:
    rows = [
        (
            f"{o.artifact.task}/{o.artifact.version}",
            o.method,
            "" if o.search_accuracy is None else f"{o.search_accuracy:.1%}",
            f"{o.val_accuracy:.1%}",
            f"{o.test_accuracy:.1%}",
            f"{o.n_parameters:,}",
            f"{o.train_s:.1f}",
            f"{o.search_s:.1f}",
        )
        for o in outcomes
    ]
    numbers = ("search val", "val", "test", "parameters", "train s", "search s")
    columns = ("artifact", "method", *numbers)
    title = f"stored in {store}"
    if any(o.search_accuracy is not None for o in outcomes):
        title += (
            "\nsearch val: the chosen subnet with the supernet's weights; val, test: what is stored"
        )
    stdout.print(make_table(title, columns, rows, right=numbers, whole=("artifact", "parameters")))
    if not make_current:
        from glora_deploy.store.audit import store_option

        first = outcomes[0].artifact
        stdout.print(
            f"not current; to let it answer: glora use {first.task} {first.version}"
            f"{store_option(store)}",
            soft_wrap=True,
        )
    for o in outcomes:
        if o.as_searched:
            stdout.print(
                f"{o.artifact.task}/{o.artifact.version}: the epochs after the search made it no "
                "better, so the weights are those it was chosen with",
                soft_wrap=True,
            )


app = app_of(train)


def main() -> None:
    """Entry point of ``glora-train``."""
    app()
