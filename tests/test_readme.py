"""The README's commands exist, and so does every option and file they name."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

import glora_deploy.cli
import glora_deploy.export.cli.commands
import glora_deploy.training.cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROGRAMS = {
    "glora": glora_deploy.cli.app,
    "python -m glora_deploy.export": glora_deploy.export.cli.commands.app,
    "python -m glora_deploy.training": glora_deploy.training.cli.app,
}


def shell_lines() -> list[str]:
    """Every ``$ command`` of the README, continued lines joined, comments dropped."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line[2:].partition("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def options_of(program: str, words: list[str]) -> set[str]:
    """Options of the program, or of the subcommand that comes first among the words."""
    command = typer.main.get_command(PROGRAMS[program])
    if words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    "line", [line for line in shell_lines() if line.startswith(tuple(PROGRAMS))]
)
def test_every_option_in_the_readme_exists(line: str) -> None:
    program = next(name for name in PROGRAMS if line.startswith(f"{name} "))
    words = shlex.split(line.removeprefix(program))
    named = {word for word in words if word.startswith("--")}
    assert named <= options_of(program, words)


def test_the_readme_shows_all_three_programs() -> None:
    for program in PROGRAMS:
        assert any(line.startswith(program) for line in shell_lines())


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)|\$ make (\w+)", README, re.MULTILINE))
def test_every_make_target_in_the_readme_exists(target: tuple[str, str]) -> None:
    name = "".join(target)
    done = subprocess.run(
        ["make", "--dry-run", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
