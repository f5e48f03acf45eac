from __future__ import annotations

from pathlib import Path

from command_stores import make_listed_store, run


def test_remove_needs_force_for_a_whole_task(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    refused = run("remove", "pets", "--store", tmp_path)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert run("remove", "pets", "v1", "--store", tmp_path).exit_code == 0
    assert store.versions("pets") == ["v2"]
    assert run("remove", "pets", "--force", "--store", tmp_path).exit_code == 0
    assert store.tasks() == ["cats"]
