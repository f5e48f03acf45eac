"""Every benchmark that README and the pages name is there, and says how it is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracked_files import ROOT

BENCHMARKS = ROOT / "benchmarks"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def named() -> set[str]:
    """Names of scripts in the pages' code, as ``benchmarks/x.py`` or as in README's tables."""
    found = set[str]()
    for page in PAGES:
        text = page.read_text("utf-8")
        found |= set(re.findall(r"benchmarks/(\w+\.py)", text))
        if page.name == "README.md":
            rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
            found |= set(re.findall(r"`(\w+\.py)[ `]", rows))
    return found


def test_every_script_that_is_named_is_there() -> None:
    scripts = {path.name for path in BENCHMARKS.glob("*.py")}
    assert named() - scripts == set()
    assert len(named()) > 15


ASK_ALL = """
import contextlib, io, json, runpy, sys
answers = {}
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    said, status = io.StringIO(), "did not end"
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code
    answers[path] = [status, said.getvalue()]
print(json.dumps(answers))
"""
"""In one process: each script alone would import torch again."""


@pytest.mark.slow
def test_every_script_says_how_it_is_run() -> None:
    scripts = [str(BENCHMARKS / name) for name in sorted(named())]
    # The first of a command's places is that of its script, where its own modules lie.
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n{ASK_ALL}"
    command = [sys.executable, "-c", code, *scripts]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(scripts) > 15
    for path, (status, said) in answers.items():
        assert (status, path) == (0, path), said
        assert f"usage: {Path(path).name}" in said
