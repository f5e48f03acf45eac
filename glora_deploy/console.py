"""What the command lines share: one-line errors, progress, tables. Results go to stdout.

Everything else goes to stderr, so that a pipe receives the result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as RichProgress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .errors import GloraDeployError
from .interrupt import INTERRUPTED
from .plain_progress import PlainProgress, Progress

_UNBOUNDED = 100_000
"""Columns; wider than any table."""

# What is printed holds names that people gave: "[red]" and ":fish:" in them mean themselves.
stdout = Console(markup=False, emoji=False)
"""For results."""
stderr = Console(stderr=True, markup=False, emoji=False)
"""For progress and notes."""


@contextmanager
def one_line_errors(interrupted: str | Callable[[], str] = "interrupted") -> Iterator[None]:
    """Turn what users can put right into one line on stderr and an exit status.

    GloraDeployError, OSError and ValueError end the program with status 1, Ctrl-C with 130.
    Anything else is a defect of ours and keeps its traceback.

    Args:
        interrupted: What to say on Ctrl-C, such as how to go on, or what finds it out then.

    Raises:
        typer.Exit: With the status.
    """
    try:
        yield
    except (GloraDeployError, OSError, ValueError) as error:
        typer.secho(f"error: {one_line(error)}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        said = interrupted if isinstance(interrupted, str) else interrupted()
        typer.secho(said, err=True, fg=typer.colors.YELLOW)
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def wrong_usage_of(option: str) -> Iterator[None]:
    """Turn a value that the library refuses into wrong usage of an option, exit status 2.

    Raises:
        typer.BadParameter: For a ValueError or GloraDeployError; names the option.
    """
    try:
        yield
    except (GloraDeployError, ValueError) as error:
        raise typer.BadParameter(one_line(error), param_hint=option) from error


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; an OSError names its file first.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "weights.npz"))
    'weights.npz: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(filter(None, lines)) or type(error).__name__


class _LazyProgress(RichProgress):
    """Prints nothing, not even an empty line, before there is a first bar."""

    def __enter__(self) -> Self:
        return self

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """Add a bar, and show the display if this is the first."""
        self.start()
        return super().add_task(*args, **kwargs)

    def stop(self) -> None:
        """Leave the bars as they are."""
        if self.live.is_started:
            super().stop()


def progress_bars(*, quiet: bool = False) -> Progress:
    """Bars on stderr: description, bar, count, time gone, time left, and the task's ``note``.

    Where stderr is no terminal, lines with the same every few seconds. Every task is added with a
    ``note``: ``bars.add_task("training", total=9, note="")``.
    """
    if not (quiet or stderr.is_terminal):
        return PlainProgress(_say)
    return _LazyProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=stderr,
        disable=quiet,
    )


def progress_line(*, quiet: bool = False) -> Progress:
    """A line on stderr for work of unknown length: description, time gone and ``note``.

    Where stderr is no terminal, a line for each ``note``.
    """
    if not (quiet or stderr.is_terminal):
        return PlainProgress(_say)
    return _LazyProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=stderr,
        disable=quiet,
    )


def _say(line: str) -> None:
    stderr.print(line, soft_wrap=True, highlight=False)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    whole: Collection[str] = (),
) -> None:
    """Print a table on stdout; nothing of it is cut.

    In a terminal cells of several words fold where the table would be wider; what cannot fold stays
    whole, and the terminal breaks the line. Elsewhere a row is a line, however long.

    Args:
        title: Printed above it.
        columns: Headers.
        rows: Cells, one per column.
        right: Headers of the columns to align right, which suits numbers.
        whole: Headers of the columns that never fold.
    """
    table = make_table(columns, rows, right=right, whole=whole)
    unbounded = stdout.options.update(max_width=_UNBOUNDED)
    needed = Measurement.get(stdout, unbounded, table)
    width = max(stdout.width, needed.minimum if stdout.is_terminal else needed.maximum)
    if title:
        stdout.print(title, soft_wrap=True, highlight=False)
    Console(markup=False, emoji=False, width=width, file=stdout.file).print(table, "")


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    whole: Collection[str] = (),
) -> Table:
    """The table of ``print_table``."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        show_header=any(columns),
    )
    rows = [tuple(row) for row in rows]
    for column, *cells in zip(columns, *rows, strict=True):
        lines = [line for cell in (column, *cells) for line in cell.splitlines()]
        longest = max(map(cell_len, lines), default=0)
        word = max((cell_len(word) for line in lines for word in line.split()), default=0)
        kept = column in whole or word == longest
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=kept,
            min_width=longest if kept else word,
        )
    for row in rows:
        table.add_row(*row)
    return table
