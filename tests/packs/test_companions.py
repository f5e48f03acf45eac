"""What lies beside a version travels with it, and names no place where it lay."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import make_draft, make_tensors
from glora_deploy.errors import ArtifactError
from glora_deploy.packs.pack import pack
from glora_deploy.packs.pack_file import INDEX
from glora_deploy.packs.unpack import unpack
from glora_deploy.store.companions import HISTORY, RUN_SETTINGS
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.run_settings import read_settings, write_settings
from glora_deploy.store.store import ArtifactStore

PLACE = "folder:/home/ann/acme"
SETTINGS: dict[str, Any] = {"task": "pets", "data": PLACE, "lr": 0.01}


def put(store: ArtifactStore, companions: dict[str, bytes]) -> None:
    backbone = {"w": np.ones((5, 3), np.float32)}
    store.put_backbone(fingerprint(backbone), backbone, {"name": "toy"})
    draft = make_draft()
    recorded = draft.backbone.model_copy(update={"fingerprint": fingerprint(backbone)})
    training = draft.training.model_copy(update={"data": PLACE})
    draft = draft.model_copy(update={"backbone": recorded, "training": training})
    store.put("pets", make_tensors(draft), draft, companions=companions)


def packed(tmp_path: Path, companions: dict[str, bytes]) -> Path:
    store = ArtifactStore.create(tmp_path / "store")
    put(store, companions)
    pack(store, [("pets", None)], tmp_path / "pets.tar")
    return tmp_path / "pets.tar"


def index_of(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as archive:
        member = archive.extractfile(INDEX)
        assert member is not None
        found: dict[str, Any] = json.loads(member.read())
        return found


def test_they_travel_without_the_place_of_the_data(tmp_path: Path) -> None:
    history = b'{"epochs": []}'
    path = packed(tmp_path, {RUN_SETTINGS: write_settings(SETTINGS), HISTORY: history})
    assert b"acme" not in path.read_bytes()
    assert index_of(path)["pack_version"] == 2
    other = ArtifactStore(tmp_path / "other")
    unpack(other, path)
    assert other.verify() == []
    artifact = other.get("pets")
    assert other.companion(artifact, HISTORY) == history
    run = other.companion(artifact, RUN_SETTINGS)
    assert run is not None
    assert read_settings(run, "") == {"task": "pets", "data": "folder", "lr": 0.01}
    unpack(other, path)  # it is there already, the same


def test_under_another_name_the_settings_name_that_task(tmp_path: Path) -> None:
    path = packed(tmp_path, {RUN_SETTINGS: write_settings(SETTINGS)})
    other = ArtifactStore(tmp_path / "other")
    unpack(other, path, as_task="dogs")
    assert other.verify() == []
    run = other.companion(other.get("dogs"), RUN_SETTINGS)
    assert run is not None
    assert read_settings(run, "")["task"] == "dogs"


def test_one_that_names_the_place_of_the_data_stays_behind(tmp_path: Path) -> None:
    path = packed(tmp_path, {HISTORY: json.dumps({"note": PLACE}).encode()})
    assert b"acme" not in path.read_bytes()
    assert index_of(path)["pack_version"] == 1
    other = ArtifactStore(tmp_path / "other")
    unpack(other, path)
    assert other.companion(other.get("pets"), HISTORY) is None
    assert other.verify() == []


def test_without_any_a_pack_is_what_releases_before_them_wrote(tmp_path: Path) -> None:
    index = index_of(packed(tmp_path, {}))
    assert index["pack_version"] == 1
    assert set(index["tasks"]["pets"]["versions"]["v1"]) == {"manifest", "adapter"}


def test_an_altered_one_is_not_packed(tmp_path: Path) -> None:
    store = ArtifactStore.create(tmp_path / "store")
    put(store, {HISTORY: b"{}"})
    (store.get("pets").path / HISTORY).write_bytes(b"[]")
    with pytest.raises(ArtifactError, match=r"history\.json: sha256 is"):
        pack(store, [("pets", None)], tmp_path / "pets.tar")
    assert not (tmp_path / "pets.tar").exists()


@pytest.mark.parametrize("name", ["../evil", "current", "manifest.json", "run.TOML"])
def test_a_pack_states_no_other_file_beside_a_version(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path, {HISTORY: b"{}"})
    data = path.read_bytes()
    index = index_of(path)
    beside = index["tasks"]["pets"]["versions"]["v1"]["companions"]
    beside[name] = beside.pop(HISTORY)
    text = json.dumps(index, indent=1, sort_keys=True).encode() + b"\n"
    header = tarfile.TarInfo(INDEX)
    header.size = len(text)
    start = header.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % 512)
    path.write_bytes(start + data[data.index(b"pets/v1/manifest.json", 512 + len(text)) :])
    with pytest.raises(ArtifactError, match=r"must be companions.json or what it may name"):
        unpack(ArtifactStore(tmp_path / "other"), path)
