"""The backbones that a store keeps, and the folder of caches."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore
from pets_store import listing, refusal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


BACKBONE = {
    "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "steps": np.array(3, np.int64),
}


def test_a_backbone_is_kept_once_and_found_by_fingerprint(store: ArtifactStore) -> None:
    digest = fingerprint(BACKBONE)
    assert refusal(lambda: store.backbone_path(digest)) == (
        f"{store.root}: does not keep the backbone with fingerprint {digest[:12]}... "
        "Give its name or its weights."
    )
    folder = store.put_backbone(digest, BACKBONE, {"architecture": "vit", "mean": [0.5]})
    assert folder == store.backbone_path(digest) == store.root / ".backbones" / digest
    assert listing(folder) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == {
        "architecture": "vit",
        "mean": [0.5],
    }
    found = load_file(folder / "model.safetensors")
    assert fingerprint(found) == digest
    times = [path.stat().st_mtime_ns for path in folder.iterdir()]
    assert store.put_backbone(digest, BACKBONE, {"other": 1}) == folder
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == times
    assert store.tasks() == ["cats", "pets"]
    assert store.verify() == []


def test_a_backbone_of_another_fingerprint_is_refused(store: ArtifactStore) -> None:
    before = listing(store.root)
    with pytest.raises(ValueError, match="the tensors must have fingerprint abab"):
        store.put_backbone("ab" * 32, BACKBONE, {})
    assert listing(store.root) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_backbone_behind_a_link_is_refused(
    store: ArtifactStore, tmp_path: Path, name: str
) -> None:
    digest = fingerprint(BACKBONE)
    folder = store.put_backbone(digest, BACKBONE, {})
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    expected = f"{folder / name}: must not be a link, got one to {tmp_path / name}. Remove it."
    assert refusal(lambda: store.backbone_path(digest)) == expected
    assert only_problem(store) == expected


def test_a_damaged_backbone_is_found(store: ArtifactStore) -> None:
    folder = store.put_backbone(fingerprint(BACKBONE), BACKBONE, {})
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert re.match(f"{folder}: its tensors have fingerprint [0-9a-f]{{12}}", only_problem(store))
    weights.write_bytes(data[:-5])
    assert "model.safetensors" in only_problem(store)
    weights.unlink()
    assert "model.safetensors" in only_problem(store)
    (folder.parent / "not-a-digest").mkdir()
    assert len(store.verify()) == 2


def only_problem(store: ArtifactStore) -> str:
    (finding,) = store.verify()
    return finding.problem


def test_the_cache_folder_is_made_on_demand(store: ArtifactStore) -> None:
    assert store.skeletons == store.root / ".skeletons"
    (store.skeletons / "x.onnx").write_text("")
    assert store.skeletons.is_dir()
    assert store.verify() == []
