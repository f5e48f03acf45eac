from __future__ import annotations

import json
from pathlib import Path

from command_stores import make_listed_store, run, write_export


def test_show_for_programs_prints_the_manifest_as_it_is_stored(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    result = run("show", "pets", "v1", "--json", "--store", tmp_path)
    assert json.loads(result.output)["version"] == "v1"
    assert result.output.encode() == (tmp_path / "pets/v1/manifest.json").read_bytes()
    assert store.current("pets") == "v2"


def test_show_for_people_says_what_it_is_and_how_it_came_to_be(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    write_export(store, "pets", "pets")
    manifest = store.get("pets").manifest
    result = run("show", "pets", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "pets/v2, which answers" in result.stdout
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line.strip()]
    shown = {row[0]: row[1].strip() for row in rows if len(row) == 2}
    assert shown["created"] == f"{manifest.created[:10]} {manifest.created[11:19]} UTC"
    assert shown["accuracy"] == "validation 75.0%"
    assert shown["labels"] == "4: cat, dog, Führerschein, owl"
    assert shown["layers"] == "1 conv, 1 affine, 1 linear"
    assert shown["training"] == "3 epochs, 2 s, on cpu, seed 7"
    assert shown["exports"] == "fp32 0e+00"
    assert "which answers" not in run("show", "pets", "v1", "--store", tmp_path).stdout


def test_a_version_may_be_named_with_its_task(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    for words in (("pets", "v1"), ("pets/v1",)):
        shown = run("show", *words, "--json", "--store", tmp_path)
        assert json.loads(shown.output)["version"] == "v1"
    assert run("use", "pets/v1", "--store", tmp_path).stdout == "pets: v1 is current\n"
    for words in (
        ("show", "pets/v1", "v1"),
        ("rollback", "pets/v1"),
        ("show", "pets/"),
        ("use", "pets"),
    ):
        assert run(*words, "--store", tmp_path).exit_code == 2, words
