from __future__ import annotations

from pathlib import Path

from command_stores import make_whole_store, run


def test_prune_says_what_it_removes_and_how_many_bytes(tmp_path: Path) -> None:
    store = make_whole_store(tmp_path, "pets")
    (name,) = store.backbone_names()
    folder = tmp_path / ".backbones" / name
    with (folder / "config.json").open("ab") as file:
        file.write(b" " * 2_000_000)
    assert run("prune", "--store", tmp_path).stdout == f"{tmp_path}: freed 0.00 MB\n"
    store.remove("pets")
    told = run("prune", "--dry-run", "--store", tmp_path).stdout
    assert told == f"{folder}: 2.00 MB, would go\n{tmp_path}: would free 2.00 MB\n"
    told = run("prune", "--store", tmp_path).stdout
    assert told == f"{folder}: 2.00 MB, removed\n{tmp_path}: freed 2.00 MB\n"
    assert store.backbone_names() == []
