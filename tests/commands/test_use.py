from __future__ import annotations

from pathlib import Path

from command_stores import make_listed_store, run


def test_use_and_rollback_change_what_is_current(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    assert run("rollback", "pets", "--store", tmp_path).exit_code == 0
    assert store.current("pets") == "v1"
    oldest = run("rollback", "pets", "--store", tmp_path)
    assert oldest.exit_code == 1
    assert "v1" in oldest.stderr
    assert run("use", "pets", "v2", "--store", tmp_path).exit_code == 0
    assert store.current("pets") == "v2"
