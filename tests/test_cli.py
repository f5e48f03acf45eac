from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from factories import make_draft, make_store, make_tensors
from glora_deploy import cli, console
from glora_deploy.cli import app
from glora_deploy.packs.unpack import Unpacked, unpack
from glora_deploy.parity import PARITY_FILE, Report, Step
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore


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


def make_whole_store(root: Path, *tasks: str) -> ArtifactStore:
    """One version of each task, and the backbone of all."""
    store = ArtifactStore.create(root)
    backbone = {"w": np.arange(6, dtype=np.float32)}
    digest = fingerprint(backbone)
    draft = make_draft()
    recorded = draft.backbone.model_copy(update={"fingerprint": digest})
    draft = draft.model_copy(update={"backbone": recorded})
    for task in tasks:
        store.put_backbone(digest, backbone, {"name": "toy"})
        store.put(task, make_tensors(), draft)
    store.release_backbones()
    return store


def test_verify_names_what_is_wrong_and_exits_with_one(tmp_path: Path) -> None:
    make_whole_store(tmp_path, "pets")
    assert run("verify", "--store", tmp_path).exit_code == 0
    path = tmp_path / "pets/v1/adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = run("verify", "--store", tmp_path)
    assert result.exit_code == 1
    assert "adapter.safetensors" in result.output
    assert "problems found: 1" in result.stderr


def test_verify_says_which_versions_cannot_be_exported_and_what_to_do(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "pets")
    shutil.copytree(tmp_path / "a/pets", tmp_path / "b/pets")
    digest = ArtifactStore.open(tmp_path / "a").backbone_names()[0]
    result = run("verify", "--store", tmp_path / "b")
    assert result.exit_code == 1
    assert result.stdout == (
        f"pets/v1: cannot be exported, its backbone random:0 ({digest[:12]}..) is not in "
        f"{tmp_path}/b. Copy .backbones/{digest} from the store that the task comes from, or "
        "export it once: python -m glora_deploy.export --task pets --version v1 "
        f"--store {tmp_path}/b --checkpoint random:0\n"
    )
    assert result.stderr.strip() == f"error: {tmp_path}/b: problems found: 1"
    shutil.copytree(tmp_path / "a/.backbones", tmp_path / "b/.backbones")
    assert run("verify", "pets", "--store", tmp_path / "b").exit_code == 0


def test_a_task_travels_in_one_file(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "cats", "pets")
    file = tmp_path / "pets.tar"
    packed = run("pack", "pets", "cats/v1", file, "--store", tmp_path / "a", "-q")
    assert packed.exit_code == 0, packed.output
    size = f"{file.stat().st_size / 1e6:.2f}"
    assert packed.stdout == f"cats: v1*\npets: v1*\n{file}: {size} MB with 1 backbone\n"
    unpacked = run("unpack", file, "--store", tmp_path / "b", "-q")
    assert unpacked.exit_code == 0, unpacked.output
    assert unpacked.stdout == "cats/v1\npets/v1\ncats: v1 is current\npets: v1 is current\n"
    assert run("verify", "--store", tmp_path / "b").exit_code == 0
    again = run("unpack", file, "--store", tmp_path / "b", "-q")
    assert "pets/v1 was there already\n" in again.stdout
    taken = run("pack", "pets", file, "--store", tmp_path / "a")
    assert (taken.exit_code, len(taken.stderr.splitlines())) == (1, 1)
    assert run("pack", "pets", file, "--store", tmp_path / "a", "--force").exit_code == 0
    assert "packing" in run("pack", "pets", tmp_path / "p", "--store", tmp_path / "a").stderr
    renamed = run("unpack", file, "--store", tmp_path / "b", "--as", "dogs", "-q")
    assert renamed.stdout == "dogs/v1\ndogs: v1 is current\n"


def test_a_packed_version_that_was_not_current_comes_with_the_command_that_makes_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_whole_store(tmp_path / "a", "pets", "pets")
    file = tmp_path / "v1.tar"
    assert run("pack", "pets/v1", file, "--store", tmp_path / "a", "-q").exit_code == 0
    told = run("unpack", file, "--store", tmp_path / "b c", "-q").stdout.splitlines()
    command = f"glora use pets v1 --store '{tmp_path}/b c'"
    assert told == ["pets/v1", f"pets: none is current. Make one so: {command}"]
    assert run(*shlex.split(command)[1:]).exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert run("unpack", file, "-q").stdout.endswith("Make one so: glora use pets v1\n")


def test_a_task_removed_right_after_it_was_unpacked_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_whole_store(tmp_path / "a", "cats", "pets")
    file = tmp_path / "both.tar"
    assert run("pack", "cats", "pets", file, "--store", tmp_path / "a", "-q").exit_code == 0

    def meanwhile(store: ArtifactStore, *args: Any, **options: Any) -> list[Unpacked]:
        found = unpack(store, *args, **options)
        store.remove("cats", force=True)
        return found

    monkeypatch.setattr(cli, "take_in", meanwhile)
    result = run("unpack", file, "--store", tmp_path / "b", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[2:] == [
        "cats: was removed meanwhile",
        "pets: v1 is current",
    ]


def test_what_is_no_pack_or_altered_is_to_be_got_again(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "pets")
    file = tmp_path / "pets.tar"
    assert run("pack", "pets", file, "--store", tmp_path / "a", "-q").exit_code == 0
    data = bytearray(file.read_bytes())
    data[data.index(b"format_version")] ^= 1
    for content in (bytes(data), b"x" * 2000, b""):
        file.write_bytes(content)
        result = run("unpack", file, "--store", tmp_path / "b", "-q")
        assert result.exit_code == 1
        assert result.stderr.endswith(" Get the file again.\n")


def test_verify_says_how_to_do_without_a_version_that_cannot_be_restored(tmp_path: Path) -> None:
    make_whole_store(tmp_path, "pets", "pets", "cats")
    for version in ("v1", "v2"):
        path = tmp_path / f"pets/{version}/manifest.json"
        path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    told = run("verify", "--store", tmp_path)
    assert told.stdout.splitlines()[2:] == [
        f"pets/v1: where it cannot be restored, glora remove pets v1 --store {tmp_path}",
        f"pets/v2: where it cannot be restored, glora remove pets v2 --force --store {tmp_path}",
    ]
    assert "problems found: 2" in told.stderr
    assert run("remove", "pets", "v1", "--store", tmp_path).exit_code == 0
    assert run("remove", "pets", "v2", "--force", "--store", tmp_path).exit_code == 0
    assert run("verify", "--store", tmp_path).exit_code == 0


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("arguments", [["use", "pets", "v1"], ["remove", "pets", "v1"]])
def test_a_store_that_cannot_be_written_to_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, arguments: list[str]
) -> None:
    make_whole_store(tmp_path, "pets", "pets")

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    result = run(*arguments, "--store", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path}: the store must be writable, this user may not write to it; it is as "
        "it was. Change who may, or give a copy of it with --store.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack"],
        ["pack", "pets"],
        ["pack", "../pets", "x.tar"],
        ["pack", "pets/../v1", "x.tar"],
        ["pack", "pets/", "x.tar"],
        ["pack", "pets", "STORE/x.tar"],
        ["pack", "pets", "STORE"],
        ["unpack"],
        ["unpack", "x.tar", "--as", "a/b"],
    ],
)
def test_packing_what_cannot_be_meant_is_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    make_whole_store(tmp_path / "store", "pets")
    words = [word.replace("STORE", str(tmp_path / "store")) for word in arguments]
    result = run(*words, "--store", tmp_path / "store")
    assert result.exit_code == 2, result.output
    assert not Path("x.tar").exists()


@pytest.mark.parametrize(
    "arguments", [["pack", "dogs", "x"], ["pack", "pets/v9", "x"], ["unpack", "none.tar"]]
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_whole_store(tmp_path / "store", "pets")
    result = run(*arguments, "--store", tmp_path / "store", "-q")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


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


def test_du_compares_deltas_with_merged_copies(tmp_path: Path) -> None:
    make_listed_store(tmp_path)
    result = run("du", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    total = next(line for line in result.output.splitlines() if "all tasks" in line)
    assert "9.00" in total  # three versions of a backbone of 3 MB


def write_export(store: ArtifactStore, task: str, of: str) -> Path:
    """An fp32 export of one task, in the folder of another."""
    manifest = store.get(of).manifest
    place = store.export_dir(store.get(task), "fp32")
    place.mkdir(parents=True)
    step = Step(stage="merged-fp32", inputs="noise", n_images=1, outcome="pass")
    report = Report(
        task=manifest.task,
        version=manifest.version,
        precision="fp32",
        adapter_sha256=manifest.adapter.sha256,
        data="noise",
        steps=(step,),
    )
    (place / PARITY_FILE).write_bytes(report.to_json())
    ExportRecord.of_folder(place, manifest, "fp32", usable=True).write(place)
    return place


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


@pytest.mark.parametrize("command", ["list", "du", "verify", "prune"])
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


def test_the_proof_of_another_delta_is_not_shown_as_this_ones(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    for task, text in (("cats", "fp32 of another delta"), ("pets", "fp32 0e+00")):
        write_export(store, task, "pets")
        assert text in run("list", "--store", tmp_path).output
