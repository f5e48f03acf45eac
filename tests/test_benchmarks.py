"""Every benchmark that README and the pages name is there, and says how it is run."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tracked_files import ROOT

BENCHMARKS = ROOT / "benchmarks"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SERVERS = ("serving_", "soak", "kill_storm")


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


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in named() if name.startswith(SERVERS)))
def test_a_script_says_how_it_is_run(name: str) -> None:
    command = [sys.executable, str(BENCHMARKS / name), "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}" in done.stdout
