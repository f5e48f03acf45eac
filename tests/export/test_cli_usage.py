from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from glora_deploy.export.cli import app
from stored_tasks import make_stored_task


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for what is written by mistake under a relative or default name."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def message(result: Result) -> str:
    """The text of a usage error, out of its frame and on one line."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = (line.strip("│╭╮╰╯─ ") for line in result.stderr.splitlines())
    _, _, text = " ".join(filter(None, lines)).partition("Error ")
    return text


@pytest.mark.parametrize(
    ("before", "subcommand", "named"),
    [
        (["--store", "other"], ["verify", "--task", "pets"], "'--store': "),
        (["--quiet"], ["pull", "ann/pets"], "'--quiet': "),
        (["--task", "cats", "--precision", "fp16"], ["verify", "--task", "pets"], "'--task' / "),
    ],
)
def test_an_option_before_a_subcommand_is_refused_and_not_dropped(
    before: list[str], subcommand: list[str], named: str
) -> None:
    text = message(run(*before, *subcommand))
    assert f"Invalid value for {named}" in text
    assert f"must come after the subcommand, as in {subcommand[0]} {before[0]}" in text


def test_a_token_in_the_environment_is_no_option_before_a_subcommand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stored_task(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    assert run("--task", "pets", "--store", tmp_path, "--images", 1).exit_code == 0
    result = run("verify", "--task", "pets", "--store", tmp_path, "--images", 1)
    assert result.exit_code == 0, result.output
