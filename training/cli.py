"""``glora train``: train a task and store its delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import TaskID

from glora_deploy.console import (
    one_line,
    one_line_errors,
    print_table,
    progress_bars,
    stderr,
    stdout,
)
from glora_deploy.errors import GloraDeployError
from glora_deploy.options import CurrentOption, QuietOption, StoreOption
from glora_deploy.plain_progress import Progress
from glora_deploy.program import app_of, examples
from glora_deploy.store.default_place import DEFAULT_STORE

from .config import DeviceName, Schedule
from .config_file import take_config
from .method import WholeMethod
from .methods import METHODS
from .options import choice, parse_count, parse_numbers, parsed, wrong_settings

if TYPE_CHECKING:  # it brings torch, which --help and wrong usage do without
    from .pipeline import Outcome


DATA, BACKBONE, METHOD, SCHEDULE, RUN = (
    "Data", "Backbone", "What is trained", "For how long", "The run",
)  # fmt: skip


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
            "or vtab:PATH. By default the built-in task of the same name.",
            rich_help_panel=DATA,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Where the splits come from, if the names of folders or lists do not say it: for "
            "val and test a place below PATH or a share of train, such as "
            "train=train,val=0.2,test=val.",
            rich_help_panel=DATA,
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Leave images out that cannot be read.", rich_help_panel=DATA
        ),
    ] = False,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Train although one picture is in two splits; the accuracies are then too high.",
            rich_help_panel=DATA,
        ),
    ] = False,
    allow_empty_classes: Annotated[
        bool,
        typer.Option(
            "--allow-empty-classes",
            help="Train although a class has no training image.",
            rich_help_panel=DATA,
        ),
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Any timm model, or demo-vit, a toy that ships with the package and is the "
            "default of the built-in tasks.",
            rich_help_panel=BACKBONE,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Local weights of the backbone: .safetensors, .npz or .pth, or random:SEED. "
            "By default its pretrained ones.",
            rich_help_panel=BACKBONE,
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the input in pixels, or HEIGHTxWIDTH; the backbone's by default.",
            rich_help_panel=BACKBONE,
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
            "version has one beside it, run.toml, that repeats it.",
        ),
    ] = None,
    method: Annotated[
        str,
        choice(
            tuple(METHODS),
            metavar="NAME",
            help="; ".join(f"{name}: {each.summary}" for name, each in METHODS.items()) + ".",
            rich_help_panel=METHOD,
        ),
    ] = "glora",
    schedule: Annotated[
        Schedule,
        choice(
            Schedule,
            help="short: for minutes on a CPU. paper: the published recipe, 500 epochs and a "
            "search of 1,050 subnets.",
            rich_help_panel=SCHEDULE,
        ),
    ] = "short",
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs; the schedule's by default.", rich_help_panel=SCHEDULE),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", rich_help_panel=SCHEDULE)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate; short takes 0.001 (full: a tenth), demo-vit ten times that.",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    drop_path: Annotated[
        float | None, typer.Option(help="Drop path of the deepest block.", rich_help_panel=SCHEDULE)
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            help="Ranks on offer to low-rank forms, such as 8,4; the one rank, or width, "
            "of a method without a search.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="Factor on the change that repadapter, fact-tt, fact-tk (1 by default) or "
            "adaptformer (0.1) makes.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Kinds of layer to adapt, of linear, conv and affine; a comma between two. By "
            "default the method's.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of layer names to adapt; may be repeated. By default the "
            "method's choice.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of layers to leave alone; may be repeated.", rich_help_panel=METHOD
        ),
    ] = None,
    max_parameters: Annotated[
        str | None,
        typer.Option(
            help="Most numbers a subnet may store, such as 150000, 150k or 0.5M.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    servable_mixed: Annotated[
        bool,
        typer.Option(
            "--servable-mixed",
            help="Search only subnets that a server can answer in one batch with other tasks: no "
            "low-rank A.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    population: Annotated[
        int | None, typer.Option(help="Subnets per generation.", rich_help_panel=SCHEDULE)
    ] = None,
    generations: Annotated[
        int | None,
        typer.Option(help="Generations after the first random one.", rich_help_panel=SCHEDULE),
    ] = None,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain",
            help="After the search, train again on train and val together.",
            rich_help_panel=SCHEDULE,
        ),
    ] = False,
    compare_lora: Annotated[
        bool,
        typer.Option(
            "--compare-lora",
            help="Also train plain LoRA for the same time; stored as another version, not current.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Every draw of the run follows from it.", rich_help_panel=RUN)
    ] = 0,
    device: Annotated[
        DeviceName,
        choice(
            DeviceName,
            help="Where to compute; auto takes CUDA where there is one.",
            rich_help_panel=RUN,
        ),
    ] = "auto",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Fail unless there is an interrupted run of this task to go on with. Where it "
            "was asked for the same, it is gone on with in any case.",
            rich_help_panel=RUN,
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Discard an interrupted run of this task, and start anew.",
            rich_help_panel=RUN,
        ),
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write TensorBoard event files below this folder while training: "
            "one for each task, start and stage.",
            rich_help_panel=RUN,
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Train a task on a frozen backbone and store its delta.

    A GLoRA supernet is trained on the training split, searched for its best subnet on the
    validation split, and the subnet is tested once on the test split. The same command again goes
    on with a run that was interrupted.
    """
    from . import api  # it reads the built-in tasks, and so brings Pillow

    with (
        one_line_errors(lambda: _how_to_go_on(store, task)),
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
            scale=scale,
            layers=layers,
            include=include,
            exclude=exclude,
            max_parameters=parsed("--max-parameters", parse_count, max_parameters),
            servable_mixed=servable_mixed,
            population=population,
            generations=generations,
            retrain=retrain,
            compare_lora=compare_lora,
            seed=seed,
            device=device,
            resume=resume,
            restart=restart,
            tensorboard=tensorboard,
            report=_Bars(bars),
            tell=_tell,
        )
    if not quiet:
        _print(outcomes, store, make_current=make_current)


def _how_to_go_on(store: Path, task: str) -> str:
    from .run_folder import RunFolder

    try:
        n_epochs = RunFolder(store, task).epochs
    except GloraDeployError as error:
        return f"interrupted; {one_line(error)}"
    if not n_epochs:
        return "interrupted before an epoch was complete; nothing is kept"
    epochs = "1 epoch is" if n_epochs == 1 else f"{n_epochs} epochs are"
    return f"interrupted; {epochs} kept, and the same command goes on from there"


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
            o.name if o.artifact is None else f"{o.artifact.task}/{o.name}",
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
    print_table(title, columns, rows, right=numbers, whole=("artifact", "parameters"))
    if not make_current:
        from glora_deploy.store.audit import store_option

        first = outcomes[0].artifact
        if first is None:
            return
        stdout.print(
            f"not current; to let it answer: glora use {first.task} {first.version}"
            f"{store_option(store)}",
            soft_wrap=True,
        )
    for o in outcomes:
        if o.artifact is None:
            told = "nothing of it can be stored or served: see docs/methods.md"
            if isinstance(METHODS[o.method], WholeMethod):
                told = "no delta; glora extract makes one of its checkpoint: see docs/extract.md"
            stdout.print(f"{o.name}: a comparison alone, {told}", soft_wrap=True)
        elif o.as_searched:
            stdout.print(
                f"{o.artifact.task}/{o.artifact.version}: the epochs after the search made it no "
                "better, so the weights are those it was chosen with",
                soft_wrap=True,
            )


app = app_of(train)


def main() -> None:
    """Entry point of ``glora-train``."""
    app()
