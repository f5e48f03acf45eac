from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]

INTERRUPTING = """
import importlib.abc, os, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupting())
"""
"""Ctrl-C at the moment when a module is first asked for; then ``python -m`` or a script starts."""


def started(
    start: str, module: str, before: str = "", *words: str
) -> subprocess.CompletedProcess[str]:
    code = f"{INTERRUPTING}{before}{start}"
    command = [sys.executable, "-c", code, module, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["typer", "typer.core"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_a_program_loads_is_one_line(script: str, module: str) -> None:
    package, _, function = SCRIPTS[script].partition(":")
    done = started(f"from {package} import {function} as main; main()", module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("module", ["glora_deploy.commands.du", "rich"])
def test_ctrl_c_while_a_command_loads_is_one_line(module: str) -> None:
    done = started("from glora_deploy.__main__ import main; main()", module, "", "du")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("side", ["", ".training", ".export"])
def test_ctrl_c_while_a_module_loads_is_one_line(side: str) -> None:
    start = f"import runpy; runpy.run_module('glora_deploy{side}', run_name='__main__')"
    done = started(start, "typer")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_that_is_to_be_ignored_stays_so() -> None:
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = started("from glora_deploy.__main__ import main; main()", "typer", ignore)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fine-tune one frozen vision backbone" in done.stdout


def test_ctrl_c_where_nobody_else_takes_it_is_one_line() -> None:
    start = "from glora_deploy.interrupt import run_program; run_program(lambda: interrupted)"
    program = "def interrupted(): signal.raise_signal(signal.SIGINT)\n"
    done = started(start, "none", program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert done.returncode == 128 + signal.SIGINT
