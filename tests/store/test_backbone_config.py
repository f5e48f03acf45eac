from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_changes import changes
from safetensors.numpy import load_file, save, save_file

from factories import make_draft, make_store, make_tensors
from glora_deploy.errors import ArtifactError, BackboneMismatchError, GloraDeployError
from glora_deploy.store.artifact import ADAPTER, MANIFEST, Artifact
from glora_deploy.store.backbone_config import (
    read_backbone_config,
    require_agreement,
    require_intact_config,
)
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.manifest import FileRecord, ManifestDraft
from glora_deploy.store.store import ArtifactStore

TENSORS = {"blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def make_config(draft: ManifestDraft) -> dict[str, Any]:
    """config.json of the backbone that a draft describes."""
    backbone, images = draft.backbone, draft.preprocessing
    return {
        "architecture": backbone.name,
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            "input_size": backbone.input_size,
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
            "crop_mode": images.crop_mode,
            "mean": images.mean,
            "std": images.std,
            "classifier": backbone.classifier[0],
            "custom_load": False,
            "license": "mit",
        },
    }


def make_task(root: Path) -> tuple[ArtifactStore, Artifact, Path]:
    """A store with one artifact, and its backbone's folder."""
    draft = make_draft()
    digest = fingerprint(TENSORS)
    backbone = draft.backbone.model_copy(update={"fingerprint": digest})
    draft = draft.model_copy(update={"backbone": backbone})
    store = make_store(root)
    folder = store.put_backbone(digest, TENSORS, make_config(draft))
    return store, store.put("pets", make_tensors(draft), draft), folder


def unseal(folder: Path) -> None:
    """Make a backbone one that an older release put here."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    save_file(tensors, weights)


def unbind(artifact: Artifact) -> Artifact:
    """Make an artifact one that an older release wrote: its adapter states no digest."""
    data = save(artifact.tensors(), {"glora_deploy": '{"task": "pets"}'})
    (artifact.path / ADAPTER).write_bytes(data)
    manifest = artifact.manifest.model_copy(update={"adapter": FileRecord.of_bytes(data)})
    (artifact.path / MANIFEST).write_bytes(manifest.to_json())
    return Artifact(artifact.path, manifest)


def test_a_backbone_says_how_its_network_is_built(tmp_path: Path) -> None:
    _, _, folder = make_task(tmp_path)
    found = read_backbone_config(folder)
    assert found.architecture == "vit_tiny_patch16_224"
    assert found.pretrained_cfg.license == "mit"


def test_every_change_of_a_sealed_file_is_refused_and_found(tmp_path: Path) -> None:
    store, _, folder = make_task(tmp_path)
    path = folder / "config.json"
    stated = path.read_bytes()
    n_changes = 0
    for what, data in changes(stated):
        path.write_bytes(data)
        for read in (read_backbone_config, require_intact_config):
            with pytest.raises(ArtifactError, match=r"config\.json: sha256 is") as caught:
                read(folder)
            assert "\n" not in str(caught.value), what
        (finding,) = store.verify()
        assert finding.problem == str(caught.value)
        n_changes += 1
    assert n_changes >= 35
    path.write_bytes(stated)
    assert store.verify() == []
    path.unlink()
    (finding,) = store.verify()
    assert finding.problem == f"{path}: must be a file, none is here. Restore it."


def test_a_seal_names_both_sides_and_the_way_out(tmp_path: Path) -> None:
    _, _, folder = make_task(tmp_path)
    path = folder / "config.json"
    before = FileRecord.of_file(path).sha256
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9"))
    after = FileRecord.of_file(path).sha256
    with pytest.raises(ArtifactError) as caught:
        read_backbone_config(folder)
    assert str(caught.value) == (
        f"{path}: sha256 is {after[:12]}.. on disk, {before[:12]}.. in model.safetensors. Restore "
        "it, or remove its folder and give the backbone again with --backbone."
    )


def test_a_damaged_backbone_is_not_taken_for_the_one_that_is_put(tmp_path: Path) -> None:
    store, artifact, folder = make_task(tmp_path)
    digest, config = artifact.manifest.backbone.fingerprint, make_config(artifact.manifest)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, data in (("config.json", b"[]\n"), ("model.safetensors", b"")):
        (folder / name).write_bytes(data)
        for action in (
            lambda: store.require_intact_backbone(digest),
            lambda: store.put_backbone(digest, TENSORS, config),
        ):
            with pytest.raises(ArtifactError, match=f"^{folder}/{name}: "):
                action()
        (folder / name).write_bytes(good[name])
    assert store.put_backbone(digest, TENSORS, config) == folder
    store.require_intact_backbone(digest)
    store.require_intact_backbone("ab" * 32)  # not kept, so nothing about it is damaged


@pytest.mark.parametrize("data", [b"[]", b"null", b"", b"{}", b'{"arch": 1}'])
def test_of_an_older_release_it_must_at_least_be_a_configuration(
    tmp_path: Path, data: bytes
) -> None:
    store, _, folder = make_task(tmp_path)
    unseal(folder)
    assert store.verify() == []
    path = folder / "config.json"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        read_backbone_config(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert [finding.problem for finding in store.verify()] == [str(caught.value)]


# What nothing in a network follows from; a license alone leaves the machine, as it is stated.
FREE = {"custom_load", "license"}


def test_an_older_manifest_must_agree_with_every_change_of_its_backbone(tmp_path: Path) -> None:
    store, artifact, folder = make_task(tmp_path)
    artifact = unbind(artifact)
    unseal(folder)
    require_agreement(artifact, folder)
    assert store.verify() == []
    path = folder / "config.json"
    for what, data in changes(path.read_bytes()):
        path.write_bytes(data)
        if FREE & {*what.rpartition(".")} and (what.startswith("altered") or "custom" in what):
            require_agreement(artifact, folder)
            continue
        with pytest.raises(GloraDeployError) as caught:
            require_agreement(artifact, folder)
        assert "\n" not in str(caught.value), what
        assert str(caught.value) in [finding.problem for finding in store.verify()], what


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"embed_dim": 5', b'"embed_dim": 6', "backbone.model_args.embed_dim is 6, 5 in "),
        (b'"embed_dim": 5', b'"depth": 5', "backbone.model_args.depth is 5, None in "),
        (b"vit_tiny_", b"vit_huge_", "backbone.name is 'vit_huge_patch16_224', 'vit_tiny_"),
        (b"0.875", b"0.9", "preprocessing.crop_pct is 0.9, 0.875 in "),
        (b'"bicubic"', b'"nearest"', "preprocessing.interpolation is 'nearest', 'bicubic' in "),
        (b"0.125", b"0.25", "preprocessing.mean is (0.5, 0.25, 0.25), (0.5, 0.25, 0.125) in "),
    ],
)
def test_an_altered_older_manifest_is_found_by_its_backbone(
    tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    store, artifact, folder = make_task(tmp_path)
    path = unbind(artifact).path / MANIFEST
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(BackboneMismatchError) as caught:
        require_agreement(store.get("pets"), folder)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(folder / "config.json") in str(caught.value)
    assert [finding.problem for finding in store.verify()] == [str(caught.value)]


def test_a_bound_manifest_may_use_a_backbone_in_another_way(tmp_path: Path) -> None:
    store, first, folder = make_task(tmp_path)
    images = first.manifest.preprocessing.model_copy(update={"crop_pct": 1.0, "size": (12, 16)})
    backbone = first.manifest.backbone.model_copy(update={"input_size": (3, 12, 16)})
    draft = first.manifest.model_copy(update={"preprocessing": images, "backbone": backbone})
    second = store.put("cats", first.tensors(), draft)
    require_agreement(second, folder)
    assert store.verify() == []
    assert json.loads((folder / "config.json").read_bytes())["pretrained_cfg"]["crop_pct"] == 0.875
