from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_stores import make_listed_store, run, write_export
from factories import make_store
from glora_deploy import console


def test_list_shows_every_version_its_size_and_which_is_current(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "pets" in line]
    assert [row.split()[0] for row in rows] == ["pets/v1", "pets/v2*"]
    assert "not exported" in rows[0]
    assert "3.00" in rows[0]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("parity.json", "{}"),
        ("export.json", "[]"),
        ("export.json", "{}"),
        ("export.json", '"files": null'),
        ("export.json", None),
        ("parity.json", None),
    ],
)
def test_a_damaged_export_does_not_hide_the_store(
    tmp_path: Path, name: str, data: str | None
) -> None:
    store = make_listed_store(tmp_path)
    path = write_export(store, "pets", "pets") / name
    assert "fp32 0e+00" in run("list", "--store", tmp_path).output
    if data is None:
        path.unlink()
    elif data.startswith('"'):
        path.write_text(json.dumps({**json.loads(path.read_text()), "files": None}))
    else:
        path.write_text(data)
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "fp32 damaged" in result.output
    assert "fp32 0e+00" not in result.output


def test_a_store_without_its_backbone_is_still_listed(tmp_path: Path) -> None:
    make_store(tmp_path, {"pets": 1})
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "unknown" in result.output


def test_numbers_are_not_cut_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_listed_store(tmp_path)
    monkeypatch.setattr(console.stdout, "width", 80)
    assert "…" not in run("list", "--store", tmp_path).output


def test_the_proof_of_another_delta_is_not_shown_as_this_ones(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    for task, text in (("cats", "fp32 of another delta"), ("pets", "fp32 0e+00")):
        write_export(store, task, "pets")
        assert text in run("list", "--store", tmp_path).output
