from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import typer
from rich.console import Console
from rich.progress import Progress as RichProgress

from glora_deploy import console as console_module
from glora_deploy.console import (
    INTERRUPTED,
    make_table,
    one_line,
    one_line_errors,
    print_table,
    progress_bars,
    progress_line,
    stderr,
    stdout,
    wrong_usage_of,
)
from glora_deploy.errors import DataError, StoreError
from glora_deploy.plain_progress import PlainProgress, Progress


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StoreError("no task 'x'\n  in artifacts"), "no task 'x' in artifacts"),
        (ValueError("epochs must be at least 1, got 0"), "epochs must be at least 1, got 0"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a.npz"), "a.npz: Permission denied"),
        (DataError(""), "DataError"),
    ],
)
def test_what_users_can_put_right_is_one_line_and_status_1(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_line(error) == line
    with pytest.raises(typer.Exit) as stopped, one_line_errors():
        raise error
    captured = capsys.readouterr()
    assert stopped.value.exit_code == 1
    assert captured.err == f"error: {line}\n"
    assert captured.out == ""


@pytest.mark.parametrize("error", [ValueError("must be 1\nor 2"), DataError("must be 1 or 2")])
def test_a_value_of_an_option_that_is_refused_is_wrong_usage_of_it(error: Exception) -> None:
    with pytest.raises(typer.BadParameter) as stopped, wrong_usage_of("--count"):
        raise error
    assert stopped.value.exit_code == 2
    assert stopped.value.format_message() == "Invalid value for --count: must be 1 or 2"
    with pytest.raises(OSError, match="gone"), wrong_usage_of("--count"):
        raise OSError("gone")


def test_an_interrupt_is_one_line_and_the_status_shells_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as stopped, one_line_errors("go on with --resume"):
        raise KeyboardInterrupt
    assert stopped.value.exit_code == INTERRUPTED == 130
    assert capsys.readouterr().err == "go on with --resume\n"


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("ours"), RuntimeError("ours")])
def test_our_own_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"), one_line_errors():
        raise error


def test_progress_without_a_bar_prints_nothing_and_with_one_goes_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bars():
        pass
    assert capsys.readouterr() == ("", "")
    with progress_bars() as bars:
        bar = bars.add_task("training", total=3, note="")
        bars.update(bar, completed=2, note="loss 0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training" in captured.err
    assert "2/3" in captured.err
    assert "loss 0.5" in captured.err


@pytest.mark.parametrize("display", [progress_bars, progress_line])
def test_a_terminal_gets_bars_and_a_file_gets_lines(
    display: Callable[..., Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(display(), PlainProgress)
    monkeypatch.setattr(type(stderr), "is_terminal", True)
    assert isinstance(display(), RichProgress)


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(quiet=True) as bars:
        bars.add_task("training", total=3, note="")
    assert capsys.readouterr() == ("", "")


def open_stdout(monkeypatch: pytest.MonkeyPatch, width: int, *, is_terminal: bool) -> None:
    """Let results go to a terminal of so many columns, or elsewhere."""
    made = Console(markup=False, emoji=False, width=width, force_terminal=is_terminal)
    monkeypatch.setattr(console_module, "stdout", made)


COLUMNS = ("artifact", "method", "why")
ROWS = [
    (f"{'long' * 12}/v{n}", "glora", "a reason of some words, none of them long") for n in (1, 2)
]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_cell_of_a_table_is_cut(
    width: int,
    is_terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_stdout(monkeypatch, width, is_terminal=is_terminal)
    print_table("stored", COLUMNS, ROWS, whole=("method",))
    shown = capsys.readouterr().out
    assert "…" not in shown
    lines = shown.splitlines()
    rows = [line for line in lines if "/v" in line]
    for row, line in zip(ROWS, rows, strict=True):
        assert line.split()[:2] == [row[0], "glora"]  # to be copied as they are
    assert lines[0].strip() == "stored"
    assert shown.split()[1:4] == list(COLUMNS)
    words = " ".join(shown.split()[5:])
    for word in ROWS[0][2].split():
        assert words.count(word) >= 2
    if not is_terminal:
        assert all(line.rstrip().endswith(row[2]) for row, line in zip(ROWS, rows, strict=True))


def test_in_a_terminal_cells_of_several_words_fold_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_stdout(monkeypatch, 80, is_terminal=True)
    print_table("", COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert len(lines) > 2 + len(ROWS)


def test_numbers_are_aligned_right() -> None:
    rows = [("a", "7"), ("b", "1,234")]
    table = make_table(("task", "bytes"), rows, right=("bytes",))
    assert [column.justify for column in table.columns] == ["left", "right"]


NAME = "[red]cat:fish:"


@pytest.mark.parametrize("console", [stdout, stderr])
def test_names_are_printed_as_they_are(
    console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    console.print(f"folder:{NAME}: 2 classes", soft_wrap=True)
    print_table(f"title {NAME}", (f"head {NAME}",), [(f"cell {NAME}",)])
    shown = "".join(capsys.readouterr())
    for text in (f"folder:{NAME}: 2", f"title {NAME}", f"head {NAME}", f"cell {NAME}"):
        assert text in shown


@pytest.mark.parametrize("display", [progress_bars, progress_line])
def test_names_are_shown_as_they_are_beside_a_bar(
    display: Callable[[], Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    with display() as bars:
        bars.add_task(f"export {NAME}", total=3, note=f"note {NAME}")
    shown = " ".join(capsys.readouterr().err.split())
    assert f"export {NAME}" in shown
    assert f"note {NAME}" in shown
