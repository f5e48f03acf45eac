"""``glora report``: how a training went and what came of it, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import one_line_errors, progress_bars, stderr, stdout
from ..evaluation.choices import Device
from ..image_bars import ImageBars
from ..options import OptionalVersionArgument, QuietOption, StoreOption, TaskArgument
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .answering import DataOption, SkipOption, SplitOption, require_data


@examples(
    "digits",
    "digits v1 --out pages/digits",
    "pets --data folder:photos/pets  # images that lie elsewhere now",
)
def report(
    task: TaskArgument,
    version: OptionalVersionArgument = None,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; TASK-VERSION-report by default. One that holds a report and "
            "nothing else is replaced.",
            file_okay=False,
        ),
    ] = None,
    data: DataOption = None,
    split: SplitOption = "test",
    skip_unreadable: SkipOption = False,
    device: Annotated[
        Device, typer.Option("--device", help="Where the networks compute.")
    ] = "auto",
    quiet: QuietOption = False,
) -> None:
    """Write a page on a version: curves, search, forms, confusions, mistakes, features.

    A folder with index.html, which needs no network, and a PNG of each figure. What is not at hand,
    such as the data, is left out, and the page says why.
    """
    require_data(data)
    with one_line_errors():
        from ..report import write_report

        with progress_bars(quiet=quiet) as bars:
            written = write_report(
                task,
                version,
                store=store,
                out=out,
                data=data,
                split=split,
                skip_unreadable=skip_unreadable,
                device=device,
                report=ImageBars(bars).show,
            )
    for title, why in written.left_out:
        stderr.print(f"left out {title}: {why}", soft_wrap=True)
    if not quiet:
        stdout.print(str(written.page), soft_wrap=True)
