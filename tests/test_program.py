"""What every program and command answers to, and what it imports to do so."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import glora_deploy
from command_stores import make_listed_store
from glora_deploy.commands.main import app
from glora_deploy.commands.table import COMMANDS
from glora_deploy.export.cli.commands import app as export_app
from glora_deploy.program import Entry, load_command
from glora_deploy.training.cli import app as training_app

HEAVY = {
    *(
        "huggingface_hub",
        "jinja2",
        "matplotlib",
        "numba",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "peft",
        "PIL",
    ),
    *("sklearn", "tensorrt", "tensorrt_rtx", "timm", "torch", "torchvision"),
    *("transformers", "triton", "fastapi", "uvicorn"),
}
WIDTH = 80
"""Columns of a terminal, if nobody has made it wider."""

SUBCOMMANDS = ("export verify", "export pull", "export import", "export extract")
PROGRAMS = ("training", "export", "serving")
WITHOUT_NUMPY = {"", *COMMANDS} - {
    *(
        "train",
        "export",
        "import",
        "extract",
        "pull",
        "list",
        "show",
        "predict",
        "evaluate",
        "compare",
    ),
    *("report", "serve"),
}
"""Commands of the project whose help needs no numpy."""

WRONG = (
    *(" train", " train --task digits --epochs 0", " train --task digits --lr -1"),
    *(" train --task digits --method lora --retrain", ".training --task digits --epochs 0"),
    *(" train --task digits --device tpu", " train --task a/b --data digits"),
    *(" export --task digits --images 0", " export --task digits --precision fp8"),
    *(
        " export --task a/b",
        " export verify",
        " import x --task t --input-size 0",
        " extract x --task t --rank 0",
    ),
    *(" pull", " predict --task t a.png --top-k 0", " predict a.png", " show a/b/c", " use a"),
    " train --task t --data digits --checkpoint random:x",
    *(" remove a", " list --no-such", " pack a", " unpack x --as a/b", " nonesuch"),
)

MISSING = (
    " train --task t --data digits --checkpoint no-such.pth",
    " train --task t --data folder:no-such --backbone demo-vit",
)

EACH = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
import typer.testing

heavy = {*sys.argv[1].split()}
for line in sys.stdin:
    module, _, words = line.rstrip("\\n").partition(" ")
    sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    said, error, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(said), redirect_stderr(error):
        try:
            sys.argv = ["program", *words.split()]
            __import__(f"glora_deploy{module}.__main__", fromlist=["main"]).main()
        except SystemExit as stop:
            status = stop.code or 0
    print(json.dumps([line.rstrip("\\n"), status, said.getvalue(), error.getvalue(),
        sorted(heavy & {name.partition(".")[0] for name in sys.modules})]))
    sys.stdout.flush()
    os._exit(0)
"""
"""Runs each line of stdin in a fork: the side, then the words; prints what came of it."""


def lines() -> Iterator[str]:
    yield from (" -h", " use -h", *(f".{side} -h" for side in PROGRAMS))
    for option in ("--help", "--version"):
        yield f" {option}"
        for name in (*COMMANDS, *SUBCOMMANDS):
            yield f" {name} {option}"
        for side in PROGRAMS:
            yield f".{side} {option}"


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, str, set[str]]]:
    """Exit status, stdout, stderr and heavy modules of each line."""
    done = subprocess.run(
        [sys.executable, "-c", EACH, " ".join({*HEAVY, "numpy"})],
        input="\n".join([*lines(), *WRONG, *MISSING]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": str(WIDTH)},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {line: (status, said, error, {*heavy}) for line, status, said, error, heavy in found}


@pytest.mark.parametrize("line", [*lines()])
def test_help_and_version_are_there_and_bring_nothing_heavy(
    line: str, answers: dict[str, tuple[int, str, str, set[str]]]
) -> None:
    status, said, error, heavy = answers[line]
    assert (status, error) == (0, "")
    if line.endswith("--version"):
        assert said == f"glora-deploy {glora_deploy.__version__}\n"
    else:
        assert "Usage: " in said
        assert all(option in said for option in ("--help", " -h ", "--log-level"))
        assert "…" not in said  # what is cut cannot be read
        assert max(map(len, said.splitlines())) <= WIDTH
        assert "Examples" in said
    assert heavy & HEAVY == set()
    module, _, words = line.partition(" ")
    if not module and words.rpartition(" ")[0] in WITHOUT_NUMPY:
        assert heavy == set()


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_status_2_before_anything_heavy_starts(
    line: str, answers: dict[str, tuple[int, str, str, set[str]]]
) -> None:
    status, said, error, heavy = answers[line]
    assert (status, said) == (2, "")
    assert "Usage: " in error
    assert heavy & HEAVY <= {"PIL"}  # which training reads its built-in tasks with


@pytest.mark.parametrize("line", MISSING)
def test_what_is_missing_is_said_in_a_line_before_anything_heavy_starts(
    line: str, answers: dict[str, tuple[int, str, str, set[str]]]
) -> None:
    status, said, error, heavy = answers[line]
    assert (status, said, error.count("\n")) == (1, "", 1)
    assert "no-such" in error
    assert heavy & HEAVY <= {"PIL"}


def without_program(text: str, program: str) -> str:
    """A help without the name of its program and without how its lines are broken."""
    return re.sub(r"[\s│─╭╮╰╯]+", "", text.replace(program, "PROGRAM"))


@pytest.mark.parametrize(("name", "app_of_side"), [("train", training_app), ("export", export_app)])
def test_a_side_is_the_same_command_under_another_name(name: str, app_of_side: typer.Typer) -> None:
    wide = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}
    here = CliRunner().invoke(app, [name, "--help"], prog_name="glora", env=wide)
    there = CliRunner().invoke(app_of_side, ["--help"], prog_name=f"glora-{name}", env=wide)
    expected = without_program(here.output, f"glora {name}")
    assert without_program(there.output, f"glora-{name}") == expected


@pytest.mark.parametrize(("name", "entry"), [*COMMANDS.items()])
def test_the_table_says_of_a_command_what_its_own_help_says(name: str, entry: Entry) -> None:
    found = getattr(importlib.import_module(entry.module), entry.name)
    if isinstance(found, typer.Typer):
        assert found.registered_callback is not None
        found = found.registered_callback.callback
    assert (inspect.getdoc(found) or "").splitlines()[0] == entry.help
    assert load_command(name, entry).name == name


def test_examples_are_shown_as_the_program_was_called() -> None:
    for name, words in {"glora": ["use", "-h"], "g": ["use", "-h"]}.items():
        shown = CliRunner().invoke(app, words, prog_name=name).output
        assert f" {name} use digits v2" in shown


@pytest.mark.parametrize("words", [[], ["--no-such"], ["lst"], ["list", "--no-such"], ["use"]])
def test_what_is_no_command_or_option_is_wrong_usage(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2


def test_a_misspelt_command_is_answered_with_the_one_that_is_meant() -> None:
    result = CliRunner().invoke(app, ["exprot"])
    assert "Did you mean 'export'?" in " ".join(result.stderr.split())


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("glora_deploy")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


@pytest.mark.usefixtures("logging_as_it_was")
def test_the_log_goes_to_stderr_at_the_level_that_is_asked_for(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    words = ["list", "--store", str(tmp_path), "--json"]
    quiet = CliRunner().invoke(app, words)
    loud = CliRunner().invoke(app, ["--log-level", "debug", *words])
    assert (quiet.stderr, loud.stdout) == ("", quiet.stdout)
    assert "DEBUG glora_deploy.program: list is glora_deploy.commands.list" in loud.stderr
    assert CliRunner().invoke(app, [*words, "--log-level", "loud"]).exit_code == 2


@pytest.mark.usefixtures("logging_as_it_was")
def test_every_change_of_a_store_is_logged(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    for words, said in {
        "use pets v1": f"INFO glora_deploy.store.store: {tmp_path}/pets/v1: current",
        "remove pets v2": f"INFO glora_deploy.store.store: {tmp_path}/pets/v2: removed",
    }.items():
        where = ["--store", str(tmp_path), "--log-level", "info"]
        assert said in CliRunner().invoke(app, [*words.split(), *where]).stderr


@pytest.mark.usefixtures("logging_as_it_was")
def test_what_libraries_debug_does_not_bury_the_log() -> None:
    CliRunner().invoke(app, ["list", "--log-level", "debug", "--store", "nowhere"])
    assert logging.getLogger("numba.core").getEffectiveLevel() == logging.INFO
    assert logging.getLogger("glora_deploy.store").getEffectiveLevel() == logging.DEBUG


def completed(shell: str, line: str, **environment: Any) -> list[str]:
    """What a shell is offered at the end of a line."""
    words = line.split(" ")
    asked = {
        "_GLORA_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    heavy = f"{HEAVY} & sys.modules.keys()"
    code = (
        f"import atexit, sys\natexit.register(lambda: sys.stderr.write(str({heavy})))\n"
        "from glora_deploy.__main__ import main; sys.argv[0] = 'glora'; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "set()", done.stderr
    if shell == "zsh":
        return re.findall(r'"([^"]+)"', done.stdout)
    return [line.partition("\t")[0] for line in done.stdout.split("\n") if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_offered_the_tasks_of_the_store(shell: str, tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    assert completed(shell, "glora show ", GLORA_STORE=tmp_path) == ["cats", "pets"]


def test_the_shell_is_offered_what_fits(tmp_path: Path) -> None:
    make_listed_store(tmp_path / "store")
    store = {"GLORA_STORE": tmp_path / "store"}
    assert completed("bash", "glora show pe", **store) == ["pets"]
    assert completed("bash", "glora use pets ", **store) == ["v1", "v2"]
    assert completed("bash", "glora export --task p", **store) == ["pets"]
    assert completed("bash", "glora predict --task pets --version ", **store) == ["v1", "v2"]
    assert completed("bash", "glora pack pets/", **store) == ["pets/v1", "pets/v2"]
    assert completed("bash", f"glora list --store {tmp_path}/store c") == ["cats"]
    assert completed("bash", "glora show ", GLORA_STORE=tmp_path / "none") == []
    assert completed("bash", "glora rol") == ["rollback"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_can_be_had(shell: str) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "glora_deploy", "--show-completion", shell],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"_GLORA_COMPLETE=complete_{shell}" in done.stdout
