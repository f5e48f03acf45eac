"""The storms of ``benchmarks/``, shortly: nothing goes wrong, and everything happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HAPPENS_IN_A_SOAK = (
    "altered versions that were refused",
    "changes: renew",
    "changes: renew_unasked",
    "changes: roll_back",
    "changes: roll_back_in_the_store",
    "changes: leave_and_return",
    "changes: fill_the_disk",
    "intruders: vanish",
    "intruders: dawdle_reading",
    "intruders: dawdle_sending",
    "intruders: send_nonsense",
    "intruders: send_noise_to_grpc",
    "intruders: cancel",
    "right answers",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/smaps_rollup").exists(), reason="needs the /proc of Linux"
    ),
]


def run(script: str, *arguments: str) -> dict[str, Any]:
    """What a storm counted, once nothing of it was a problem."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["problems"] == {}, found["examples"]
    assert done.returncode == 0
    return found


def test_no_answer_is_wrong_in_a_minute_of_everything_at_once() -> None:
    counts = run("soak.py", "--minutes", "1")["counts"]
    assert [what for what in HAPPENS_IN_A_SOAK if not counts.get(what)] == []


def test_a_server_and_a_writer_that_are_killed_leave_what_answers_as_before() -> None:
    counts = run("kill_storm.py", "--times", "2")["counts"]
    assert (counts["kills of the server"], counts["kills of the writer"]) == (2, 2)
    assert counts["versions that were written"]
    assert counts["right answers"]
