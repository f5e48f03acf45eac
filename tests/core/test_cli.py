from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from factories import make_store
from glora_deploy import console
from glora_deploy.cli import app
from glora_deploy.store import ArtifactStore


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.stdout, "width", 200)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_listed_store(root: Path) -> ArtifactStore:
    store = make_store(root, {"cats": 1, "pets": 2})
    fingerprint = store.get("pets").manifest.backbone.fingerprint
    folder = root / ".backbones" / fingerprint
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 3_000_000)
    return store


def test_list_shows_every_version_its_size_and_which_is_current(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "pets" in line]
    assert [row.split()[0] for row in rows] == ["pets/v1", "pets/v2*"]
    assert "not exported" in rows[0]
    assert "3.00" in rows[0]


def test_show_prints_the_manifest_as_it_is_stored(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    result = run("show", "pets", "v1", "--store", tmp_path)
    assert json.loads(result.output)["version"] == "v1"
    assert result.output.encode() == (tmp_path / "pets/v1/manifest.json").read_bytes()
    assert store.current("pets") == "v2"


def test_use_and_rollback_change_what_is_current(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    assert run("rollback", "pets", "--store", tmp_path).exit_code == 0
    assert store.current("pets") == "v1"
    oldest = run("rollback", "pets", "--store", tmp_path)
    assert oldest.exit_code == 1
    assert "v1" in oldest.stderr
    assert run("use", "pets", "v2", "--store", tmp_path).exit_code == 0
    assert store.current("pets") == "v2"


def test_remove_needs_force_for_a_whole_task(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    refused = run("remove", "pets", "--store", tmp_path)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert run("remove", "pets", "v1", "--store", tmp_path).exit_code == 0
    assert store.versions("pets") == ["v2"]
    assert run("remove", "pets", "--force", "--store", tmp_path).exit_code == 0
    assert store.tasks() == ["cats"]


def test_verify_names_what_is_wrong_and_exits_with_one(tmp_path: Path) -> None:
    make_store(tmp_path, {"pets": 1})
    assert run("verify", "--store", tmp_path).exit_code == 0
    path = tmp_path / "pets/v1/adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = run("verify", "--store", tmp_path)
    assert result.exit_code == 1
    assert "adapter.safetensors" in result.output
    assert "problems found: 1" in result.stderr


def test_du_compares_deltas_with_merged_copies(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    result = run("du", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    total = next(line for line in result.output.splitlines() if "all tasks" in line)
    assert "9.00" in total  # three versions of a backbone of 3 MB


def test_a_damaged_parity_report_does_not_hide_the_store(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    folder = tmp_path / "pets/v2/exports/fp16"
    folder.mkdir(parents=True)
    (folder / "parity.json").write_text("{}")
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "fp16 damaged" in result.output


def test_a_store_without_its_backbone_is_still_listed(tmp_path: Path) -> None:
    make_store(tmp_path, {"pets": 1})
    result = run("list", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "unknown" in result.output


@pytest.mark.parametrize("command", ["list", "du", "verify"])
def test_a_missing_store_is_one_line(tmp_path: Path, command: str) -> None:
    result = run(command, "--store", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "the store must be a folder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_numbers_are_not_cut_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_listed_store(tmp_path)
    monkeypatch.setattr(console.stdout, "width", 80)
    assert "…" not in run("list", "--store", tmp_path).output
