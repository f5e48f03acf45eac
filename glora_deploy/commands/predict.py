"""``glora predict``: an exported task answers for images, without torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import one_line, one_line_errors, print_table, progress_bars
from ..errors import DataError, NonFiniteError
from ..options import JsonOption, QuietOption, StoreOption, TaskOption, VersionOption
from ..precision import Precision
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from ..wording import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from glora_deploy.serving.predictor import Prediction, Predictor

STDIN = "-"


@examples(
    "--task digits seven.png",
    "--task digits photos/*.png --top-k 1 --json",
    "--folder exported/digits - < seven.png  # one image from stdin",
)
def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Image files; - for one image from stdin."),
    ],
    task: TaskOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="An exported folder or a pulled repository, in place of a task of the store."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    version: VersionOption = None,
    precision: Annotated[Precision, typer.Option(help="Which export of the task.")] = "fp32",
    top_k: Annotated[int, typer.Option(min=1, help="Labels to give for each image.")] = 5,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what images show, with the most probable labels of an exported task.

    The task must have been exported with --fmt onnx; ONNX Runtime computes. An image that cannot be
    read is named, the others are answered, and the exit status is then 1.
    """
    _require_one_source(task, folder, version)
    if "" in images:
        raise typer.BadParameter("must be a file, got ''", param_hint="IMAGE")
    if images.count(STDIN) > 1:
        raise typer.BadParameter("- can be given once: stdin is one image", param_hint="IMAGE")
    from glora_deploy.serving.predictor import Predictor

    with one_line_errors():
        predictor = (
            Predictor.from_folder(folder)
            if folder is not None
            else Predictor.from_store(store, task or "", version, precision=precision)
        )
        answers: dict[str, Prediction] = {}
        problems: dict[str, str] = {}
        for name, answer in _answers(predictor, [*dict.fromkeys(images)], top_k, quiet):
            if isinstance(answer, str):
                problems[name] = answer
            else:
                answers[name] = answer
        if as_json:
            _print_json(predictor, answers, problems)
        elif answers:
            _print_table(predictor, answers)
    for problem in problems.values():
        typer.secho(f"error: {problem}", err=True, fg=typer.colors.RED)
    if problems:
        raise typer.Exit(1)


def _require_one_source(task: str | None, folder: Path | None, version: str | None) -> None:
    if (task is None) == (folder is None):
        raise typer.BadParameter(
            "name a task of the store, or the folder of an export",
            param_hint=["--task", "--folder"],
        )
    if folder is not None and version is not None:
        raise typer.BadParameter("has no effect with --folder", param_hint="--version")


def _answers(
    predictor: Predictor, names: Sequence[str], top_k: int, quiet: bool
) -> Iterator[tuple[str, Prediction | str]]:
    """What the network says of each image, or what is wrong with the image."""
    from glora_deploy.serving.predictor import MAX_BATCH

    with progress_bars(quiet=quiet or len(names) <= MAX_BATCH) as bars:
        bar = bars.add_task("predicting", total=len(names), note="")
        for start in range(0, len(names), MAX_BATCH):
            batch = names[start : start + MAX_BATCH]
            decoded: dict[str, Image] = {}
            for name in batch:
                try:
                    decoded[name] = _decoded(name)
                except (DataError, OSError) as error:
                    yield name, one_line(error)
            try:
                found = predictor.predict_batch(decoded.values(), top_k=top_k)
            except NonFiniteError as error:
                for name in decoded:
                    yield name, f"{printable(name)}: {one_line(error)}"
            else:
                yield from zip(decoded, found, strict=True)
            bars.advance(bar, len(batch))


def _decoded(name: str) -> Image:
    from glora_deploy.serving.image_input import to_image

    source: Path | bytes = sys.stdin.buffer.read() if name == STDIN else Path(name)
    try:
        image: Image = to_image(source)
    except DataError as error:
        if name != STDIN:
            raise
        raise DataError(f"stdin: {one_line(error)}") from error
    return image


def _print_table(predictor: Predictor, answers: dict[str, Prediction]) -> None:
    rows = [
        (
            printable(name),
            "\n".join(each.label for each in answer.top),
            "\n".join(f"{each.probability:.1%}" for each in answer.top),
        )
        for name, answer in answers.items()
    ]
    title = f"{predictor.task}/{predictor.version} {predictor.precision}"
    columns = ("image", "label", "probability")
    print_table(title, columns, rows, right=columns[2:], whole=columns[2:])


def _print_json(
    predictor: Predictor, answers: dict[str, Prediction], problems: dict[str, str]
) -> None:
    found = {
        "task": predictor.task,
        "version": predictor.version,
        "precision": predictor.precision,
        "delta_sha256": predictor.delta_sha256,
        "predictions": [
            {
                "image": name,
                "top": [
                    {"label": each.label, "probability": each.probability} for each in answer.top
                ],
            }
            for name, answer in answers.items()
        ],
        "errors": [{"image": name, "problem": problem} for name, problem in problems.items()],
    }
    typer.echo(json.dumps(found, indent=1))
