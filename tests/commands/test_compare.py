"""``glora compare`` on versions that were really trained, and on what is recorded alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colour_files import N_TEST
from command_stores import run
from factories import make_store
from glora_deploy.store.store import ArtifactStore


@pytest.fixture
def store(colour_store: ArtifactStore) -> ArtifactStore:
    """``colours/v1`` is exported and current, ``v2`` is neither; no test changes it."""
    return colour_store


def rows_of(text: str) -> dict[str, str]:
    """The values of each row by its first cell; the table has at least two spaces between cells."""
    cells = (line.strip().split("  ", 1) for line in text.splitlines())
    return {each[0]: " ".join(each[1].split()) for each in cells if len(each) > 1}


def test_versions_stand_side_by_side_with_what_was_measured(store: ArtifactStore) -> None:
    result = run("compare", "colours", "--store", store.root)
    assert result.exit_code == 0, result.output
    rows = rows_of(result.stdout)
    assert "colours/v1* colours/v2" in " ".join(result.stdout.split())
    recorded = [store.get("colours", v).manifest.training.test_accuracy for v in ("v1", "v2")]
    shown = " ".join(f"{each:.1%}" for each in recorded if each is not None)
    assert rows["test accuracy, recorded"] == rows["accuracy, measured"] == shown
    assert rows["images"] == f"{N_TEST} {N_TEST}"
    assert rows["answered by"] == (
        "the exported ONNX model, fp32 the delta, merged with torch, fp32"
    )
    assert 0 < float(rows["p, McNemar"]) < 1
    assert rows["lr"] == "0.01 1e-05"
    report = json.loads(run("compare", "colours", "--json", "--store", store.root).stdout)
    first, second = report["versions"]
    against = second["against_first"]
    assert against["only_first"] != against["only_second"]
    assert rows["right, the first wrong"] == str(against["only_second"])
    assert rows["wrong, the first right"] == str(against["only_first"])
    assert rows["p, McNemar"] == f"{against['p_value']:.2g}"
    assert rows["accuracy difference"] == f"{against['difference']:+.1%}"
    for row, name, form in (
        ("val accuracy, recorded", "val_accuracy", ".1%"),
        ("parameters", "n_parameters", ","),
        ("classifier", "n_head_parameters", ","),
        ("trained in, s", "seconds", ",.1f"),
    ):
        assert rows[row] == f"{first[name]:{form}} {second[name]:{form}}"


def test_versions_of_one_making_differ_in_nothing(tmp_path: Path) -> None:
    make_store(tmp_path, {"pets": 2})
    result = run("compare", "pets", "--no-data", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    rows = rows_of(result.stdout)
    assert rows["parameters"].split() == [rows["parameters"].split()[0]] * 2
    assert "accuracy, measured" not in rows
    assert "They were made alike" in result.stdout


def test_what_stands_in_the_way_of_measuring_is_a_note(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"pets": 2})
    for path in store.root.glob("pets/*/manifest.json"):
        path.write_text(path.read_text("utf-8").replace('"digits"', '"folder"'), "utf-8")
    result = run("compare", "pets/v1", "pets/v2", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "note: nothing was measured: pets/v1: its manifest does not say" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pets/v1", "there must be two versions to compare, got pets/v1"),
        ("pets/v1 pets/../v2", "version must be 1 to 64"),
        ("pets --of delta --precision fp16", "no effect on a delta"),
        ("pets --no-data --data digits", "goes with no option of measuring"),
        ("pets --no-data --of onnx", "goes with no option of measuring"),
        ("pets --data dgits", "must be one of digits, photos"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_opened(
    line: str, message: str, tmp_path: Path
) -> None:
    result = run("compare", *line.split(), "--store", tmp_path / "missing")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", "").split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("birds", "error: there must be two versions at least to compare, got birds/v1"),
        ("pets cats", "error: no task 'cats' in"),
        ("pets --data folder:nowhere", "PATH must be a folder"),
    ],
)
def test_what_is_not_there_is_one_line_and_status_1(
    line: str, message: str, tmp_path: Path
) -> None:
    make_store(tmp_path, {"pets": 2, "birds": 1})
    result = run("compare", *line.split(), "--store", tmp_path)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
