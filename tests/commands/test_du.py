from __future__ import annotations

from pathlib import Path

from command_stores import make_listed_store, run


def test_du_compares_deltas_with_merged_copies(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    result = run("du", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    total = next(line for line in result.output.splitlines() if "all tasks" in line)
    assert "9.00" in total  # three versions of a backbone of 3 MB
