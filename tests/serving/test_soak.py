"""The storm of ``benchmarks/soak.py`` for a minute: nothing goes wrong, and everything happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
HAPPENED = (
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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_no_answer_is_wrong_in_a_minute_of_everything_at_once() -> None:
    command = [sys.executable, str(SOAK), "--minutes", "1", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == {}, found["examples"]
    assert [what for what in HAPPENED if not found["counts"].get(what)] == []
    assert done.returncode == 0
