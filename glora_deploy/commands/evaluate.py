"""``glora evaluate``: how good a version is on labelled images."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import one_line_errors, print_table, progress_bars, stderr, stdout
from ..evaluation.choices import Device
from ..image_bars import ImageBars
from ..options import (
    JsonOption,
    OptionalVersionArgument,
    QuietOption,
    StoreOption,
    complete_task,
    named,
    require_writable_file,
)
from ..precision import Precision
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .answering import (
    IN_WORDS,
    BatchOption,
    DataOption,
    Of,
    OfOption,
    PrecisionOption,
    SkipOption,
    SplitOption,
    open_network,
    require_choice,
    require_data,
)

if TYPE_CHECKING:
    from ..evaluation.evaluate_version import Evaluation
    from ..evaluation.metrics import Metrics

MAX_CLASSES = 20
"""More classes than these are shown when they are asked for; otherwise the worst."""
N_WORST = 10


@examples(
    "digits",
    "digits v1 --of delta --split val",
    "digits --data folder:photos --split all --per-class  # every image of a folder of one's own",
    "--folder digits-onnx --data digits --json  # an exported folder",
)
def evaluate(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="Name of a task; with --folder, whose data are meant.",
            autocompletion=complete_task,
            callback=named("task"),
            show_default=False,
        ),
    ] = None,
    version: OptionalVersionArgument = None,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    split: SplitOption = "test",
    of: OfOption = None,
    precision: PrecisionOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            file_okay=False,
            help="Let the ONNX model of an exported or downloaded folder answer.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where a delta computes.")] = "auto",
    batch_size: BatchOption = 32,
    skip_unreadable: SkipOption = False,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help=f"Show every class, also where more than {MAX_CLASSES}."),
    ] = False,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Show which class was taken for which.")
    ] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv", dir_okay=False, help="Write which class was taken for which to this file."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a version on labelled images: accuracy, each class, what is taken for what.

    The images are by default the test split that its training recorded, where the accuracy must
    be the recorded one. If they have changed since, a line says so.
    """
    _require_effect(task, folder, data, of, precision, device)
    require_writable_file(csv_file, "--csv")
    require_data(data)
    with one_line_errors():
        with progress_bars(quiet=quiet) as bars:
            found = _evaluate(
                task,
                version,
                store,
                folder,
                open_network=partial(open_network, of=of, precision=precision, device=device),
                data=data,
                split=split,
                batch_size=batch_size,
                skip_unreadable=skip_unreadable,
                report=partial(ImageBars(bars).show, "evaluate"),
            )
        if csv_file is not None:
            _write_csv(csv_file, found.metrics)
    for note in found.notes:
        stderr.print(f"note: {note}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False))
    elif not quiet:
        _print(found, per_class=per_class, confusion=confusion)


def _require_effect(
    task: str | None,
    folder: Path | None,
    data: str | None,
    of: Of | None,
    precision: Precision | None,
    device: Device,
) -> None:
    """Refuse what cannot be meant, or would have no effect."""
    require_choice(of, precision)
    if folder is None and task is None:
        raise typer.BadParameter("name a task, or give --folder", param_hint="TASK")
    if folder is not None and task is None and data is None:
        raise typer.BadParameter(
            "a folder alone does not say what it was trained on. Give --data, or the TASK whose "
            "data are meant",
            param_hint="--folder",
        )
    if folder is not None and (of == "delta" or precision is not None):
        raise typer.BadParameter(
            "no effect on a folder, whose ONNX model answers in the precision that it has",
            param_hint="--of" if of == "delta" else "--precision",
        )
    if device != "auto" and (of == "onnx" or precision is not None or folder is not None):
        raise typer.BadParameter(
            "no effect on an ONNX model, which runs on the CPU", param_hint="--device"
        )


def _evaluate(
    task: str | None, version: str | None, store: Path, folder: Path | None, **settings: Any
) -> Evaluation:
    from ..evaluation.evaluate_version import evaluate as run, evaluate_on
    from ..evaluation.labelled_images import load_images

    if folder is None:
        assert task is not None
        return run(task, version, store=store, **settings)
    from ..serving import Predictor

    predictor = Predictor.from_folder(folder)
    del settings["open_network"]
    if task is not None:
        return run(task, version, store=store, network=predictor, **settings)
    images = load_images(data=settings.pop("data"), split=settings.pop("split"))
    return evaluate_on(predictor, images, name="onnx", **settings)


def _print(found: Evaluation, *, per_class: bool, confusion: bool) -> None:
    metrics = found.metrics
    n = f"{metrics.n_images:,} {'image' if metrics.n_images == 1 else 'images'}"
    what = "all images" if found.split == "all" else found.split
    lines = [
        f"{found.task}/{found.version} on {found.data}, {what}: {n}",
        f"answered by {IN_WORDS[found.network]}, {found.precision}",
        f"accuracy {_percent(metrics.accuracy)}, 95% interval {_percent(metrics.interval.low)} to "
        f"{_percent(metrics.interval.high)}{_recorded(found)}",
        _other_figures(metrics),
        f"{found.seconds:.2f} s, {found.images_per_second:,.1f} images/s",
    ]
    for line in lines:
        stdout.print(line, soft_wrap=True)
    _print_classes(metrics, every=per_class or len(metrics.labels) <= MAX_CLASSES)
    if pairs := metrics.most_confused():
        rows = [(each.label, each.predicted, f"{each.n_images:,}") for each in pairs]
        columns = ("images of", "taken for", "images")
        print_table("Most confused", columns, rows, right=columns[2:])
    if confusion:
        _print_confusion(metrics)


def _recorded(found: Evaluation) -> str:
    """How the accuracy goes with what the training measured on the same images."""
    recorded = found.recorded_accuracy
    if recorded is None:
        return ""
    same = recorded == found.metrics.accuracy
    return ", as recorded" if same else f"; recorded: {_percent(recorded)}"


def _other_figures(metrics: Metrics) -> str:
    figures = {
        "top-5": metrics.top5_accuracy,
        "balanced accuracy": metrics.balanced_accuracy,
        "macro F1": metrics.macro_f1,
        "mean confidence": metrics.mean_confidence,
        "calibration error": metrics.calibration_error,
    }
    return ", ".join(f"{name} {_percent(x)}" for name, x in figures.items() if x is not None)


def _print_classes(metrics: Metrics, *, every: bool) -> None:
    classes, title = metrics.per_class, "Each class"
    if not every:
        with_images = [each for each in classes if each.recall is not None]
        worst = sorted(with_images, key=lambda each: each.recall or 0.0)[:N_WORST]
        classes, title = (
            tuple(worst),
            f"The {len(worst)} classes of lowest recall; all: --per-class",
        )
    rows = [
        (
            each.label,
            _percent(each.precision),
            _percent(each.recall),
            _percent(each.f1),
            f"{each.n_images:,}",
            f"{each.n_predicted:,}",
        )
        for each in classes
    ]
    columns = ("class", "precision", "recall", "F1", "images", "answers")
    print_table(title, columns, rows, right=columns[1:])


def _print_confusion(metrics: Metrics) -> None:
    columns = ["is, below; taken for, right", *metrics.labels]
    rows = [
        [label, *(f"{count:,}" if count else "" for count in row)]
        for label, row in zip(metrics.labels, metrics.confusion.tolist(), strict=True)
    ]
    print_table("Which class was taken for which", columns, rows, right=columns[1:])


def _write_csv(path: Path, metrics: Metrics) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *metrics.labels])
        for label, row in zip(metrics.labels, metrics.confusion.tolist(), strict=True):
            writer.writerow([label, *row])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
