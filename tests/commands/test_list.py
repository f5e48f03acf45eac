from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_stores import make_listed_store, run, write_export
from factories import make_store
from glora_deploy import console
from glora_deploy.store.store import ArtifactStore


def test_list_shows_every_version_its_size_and_which_is_current(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "pets" in line]
    assert [row.split()[0] for row in rows] == ["pets/v1", "pets/v2*"]
    manifest = ArtifactStore.open(tmp_path).get("pets", "v1").manifest
    assert rows[0].split()[1:] == [
        manifest.created[:10], "glora", "75.0%", "145", "0.00", "no", "export"
    ]  # fmt: skip
    only = run("list", "cats", "--store", tmp_path)
    assert "cats/v1*" in only.output
    assert "pets" not in only.output


def test_list_for_programs_has_every_field(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    write_export(store, "pets", "pets")
    found = json.loads(run("list", "--json", "--store", tmp_path).stdout)
    assert [(each["task"], each["version"], each["current"]) for each in found] == [
        ("cats", "v1", True),
        ("pets", "v1", False),
        ("pets", "v2", True),
    ]
    manifest = store.get("pets").manifest
    assert found[2] == {
        "task": "pets",
        "version": "v2",
        "current": True,
        "created": manifest.created,
        "method": "glora",
        "val_accuracy": 0.75,
        "test_accuracy": None,
        "n_parameters": manifest.n_parameters,
        "n_head_parameters": manifest.n_head_parameters,
        "delta_bytes": manifest.adapter.size_bytes,
        "merged_bytes": 3_000_000 + 4 * manifest.n_head_parameters,
        "exports": [{"precision": "fp32", "state": "proven", "formats": [], "error": None}],
    }
    assert found[1]["exports"] == []


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
    result = run("list", "--store", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["merged_bytes"] is None


def test_a_line_fits_a_narrow_terminal_and_nothing_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path, {"orientation": 1})
    monkeypatch.setattr(console.stdout, "width", 80)
    shown = run("list", "--store", tmp_path).output
    assert "…" not in shown
    (line,) = (line for line in shown.splitlines() if "orientation/v1*" in line)
    assert line.split()[-2:] == ["no", "export"]
    assert len(line.rstrip()) <= 80


def test_the_proof_of_another_delta_is_not_shown_as_this_ones(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    for task, text in (("cats", "fp32 of another delta"), ("pets", "fp32 0e+00")):
        write_export(store, task, "pets")
        assert text in run("list", "--store", tmp_path).output
