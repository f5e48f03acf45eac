from __future__ import annotations

import shutil
from pathlib import Path

from command_stores import make_whole_store, run
from glora_deploy.store.store import ArtifactStore


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
        "export it once: glora export --task pets --version v1 "
        f"--store {tmp_path}/b --checkpoint random:0\n"
    )
    assert result.stderr.strip() == f"error: {tmp_path}/b: problems found: 1"
    shutil.copytree(tmp_path / "a/.backbones", tmp_path / "b/.backbones")
    assert run("verify", "pets", "--store", tmp_path / "b").exit_code == 0


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
