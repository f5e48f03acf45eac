"""``glora compare``: versions side by side."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import one_line_errors, print_table, progress_bars, stderr, stdout, wrong_usage_of
from ..cost_cells import cost_cells
from ..image_bars import ImageBars
from ..options import JsonOption, QuietOption, StoreOption, complete_task_or_version
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .answering import (
    IN_WORDS,
    BatchOption,
    DataOption,
    OfOption,
    PrecisionOption,
    SkipOption,
    SplitOption,
    open_network,
    require_choice,
    require_data,
)
from .sizes import mb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..evaluation.compare_versions import ComparedVersion, Comparison
    from ..store.comparisons import ComparisonRecord
    from ..store.cost_record import CostRecord


@examples(
    "digits  # all of its versions, with the current one",
    "digits/v1 digits/v3",
    "digits/v1 digits/v3 --data folder:photos --split all",
    "digits --no-data --json",
)
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK[/VERSION]",
            help="Two versions at least; a task stands for all of its versions, the current one "
            "first. The others are compared with the first.",
            autocompletion=complete_task_or_version,
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    split: SplitOption = "test",
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Measure nothing: compare what is recorded.")
    ] = False,
    of: OfOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchOption = 32,
    skip_unreadable: SkipOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put versions side by side: what is recorded, what differs, who is better.

    Where the data are at hand, all versions answer for the same images, by default the test split
    that the first one recorded, and McNemar's exact test tells whether one is better than the
    first: p is how probable a difference at least as large is if neither is.
    """
    require_choice(of, precision)
    if no_data and (data is not None or of is not None or precision is not None or skip_unreadable):
        raise typer.BadParameter("goes with no option of measuring", param_hint="--no-data")
    _require_names(names)
    require_data(data)
    from ..evaluation.compare_versions import compare as run

    with one_line_errors(), progress_bars(quiet=quiet) as bars:
        found = run(
            names,
            store=store,
            open_network=partial(open_network, of=of, precision=precision),
            measure=not no_data,
            data=data,
            split=split,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            report=ImageBars(bars).show,
        )
    _print_notes(found)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False))
    elif not quiet:
        _print(found)


def _require_names(names: list[str]) -> None:
    """Refuse what names no version, and one version alone."""
    from ..store.reader import require_slug

    with wrong_usage_of("TASK[/VERSION]"):
        for name in names:
            task, slash, version = name.partition("/")
            require_slug("task", task)
            if slash:
                require_slug("version", version)
    if len({*names}) == 1 and "/" in names[0]:
        raise typer.BadParameter(
            f"there must be two versions to compare, got {names[0]}", param_hint="TASK[/VERSION]"
        )


def _print_notes(found: Comparison) -> None:
    for note in found.notes:
        stderr.print(f"note: {note}", soft_wrap=True)
    for each in found.versions:
        for note in each.notes:
            stderr.print(f"note: {each.name}: {note}", soft_wrap=True)


def _print(found: Comparison) -> None:
    columns = (
        "",
        *(f"{each.name}{'*' if each.is_current else ''}" for each in found.versions),
        *(f"{each.task}/{each.name}" for each in found.others),
    )
    title = "* is current"
    if found.data is not None:
        what = "all images" if found.split == "all" else f"{found.split} images"
        title += f"; measured on the {what} of {found.data}, compared with {found.versions[0].name}"
    cells = [*map(_cells, found.versions), *map(_cells_of_other, found.others)]
    rows = list(zip(_FACTS, *cells, strict=True))
    print_table(title, columns, [row for row in rows if any(row[1:])], right=columns[1:])
    for note in dict.fromkeys(_where_timed(found)):
        stdout.print(note, soft_wrap=True)
    if not found.differences:
        what = "data, seed or epochs" if found.others else "setting, data, backbone or form"
        stdout.print(f"They were made alike: no {what} differs.")
        return
    rows = [(each.what, *each.values) for each in found.differences]
    print_table("What differs", columns, rows)


_FACTS = (
    "method",
    "created, UTC",
    "val accuracy, recorded",
    "test accuracy, recorded",
    "accuracy, measured",
    "95% interval",
    "images",
    "answered by",
    "accuracy difference",
    "95% interval of that",
    "right, the first wrong",
    "wrong, the first right",
    "p, McNemar",
    "parameters",
    "classifier",
    "stored, MB",
    "trained in, s",
    "peak memory, MB",
    "ms an image, merged",
    "ms an image, unmerged",
)


def _cells(each: ComparedVersion) -> tuple[str, ...]:
    manifest, training = each.manifest, each.manifest.training
    recorded = (
        training.method,
        manifest.created[:16].replace("T", " "),
        _percent(training.val_accuracy),
        _percent(training.test_accuracy),
    )
    measured: tuple[str, ...] = ("", "", "", "")
    if each.evaluation is not None:
        metrics = each.evaluation.metrics
        measured = (
            _percent(metrics.accuracy),
            f"{_percent(metrics.interval.low)} to {_percent(metrics.interval.high)}",
            f"{metrics.n_images:,}",
            f"{IN_WORDS[each.evaluation.network]}, {each.evaluation.precision}",
        )
    against: tuple[str, ...] = ("", "", "", "", "")
    if (test := each.against_first) is not None:
        against = (
            f"{test.difference:+.1%}",
            f"{test.interval.low:+.1%} to {test.interval.high:+.1%}",
            f"{test.only_second:,}",
            f"{test.only_first:,}",
            f"{test.p_value:.2g}",
        )
    sizes = (
        f"{manifest.n_parameters:,}",
        f"{manifest.n_head_parameters:,}",
        mb(manifest.adapter.size_bytes),
        "" if each.seconds is None else f"{each.seconds:,.1f}",
    )
    return (*recorded, *measured, *against, *sizes, *_costs(each.cost))


def _cells_of_other(each: ComparisonRecord) -> tuple[str, ...]:
    """Of a training that left no version."""
    recorded = (
        each.method,
        each.created[:16].replace("T", " "),
        _percent(each.val_accuracy),
        _percent(each.test_accuracy),
    )
    nothing = ("",) * (_FACTS.index("parameters") - len(recorded))
    size = "" if each.checkpoint is None else mb(each.checkpoint.size_bytes)
    merges = each.checkpoint is not None
    costs = _costs(each.cost, merges=merges)
    return (*recorded, *nothing, f"{each.n_parameters:,}", "", size, f"{each.seconds:,.1f}", *costs)


def _costs(cost: CostRecord | None, *, merges: bool = True) -> tuple[str, str, str]:
    peak, merged, unmerged = cost_cells(cost, merges=merges)
    return peak, merged, unmerged if cost is None else f"{unmerged} ({cost.slowdown:.2f}x)"


def _where_timed(found: Comparison) -> Iterator[str]:
    """Where each was timed, and what the times in brackets are times of."""
    costs = [each.cost for each in found.versions] + [each.cost for each in found.others]
    for cost in costs:
        if cost is not None:
            where = cost.machine.cpu if cost.device == "cpu" else cost.device
            yield (
                f"Times are of a batch of {cost.batch_size} on {where}, taken after each training; "
                "in brackets, how many times as long as the merged network beside it."
            )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
