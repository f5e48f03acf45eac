"""Names that are refused, links, and things in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from factories import make_artifact, make_draft, make_tensors
from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.store.artifact import ADAPTER, MANIFEST
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore, Finding
from pets_store import listing, refusal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_unknown_names_are_answered_with_the_known_ones(store: ArtifactStore) -> None:
    root = store.root
    assert refusal(lambda: store.get("dogs")) == f"no task 'dogs' in {root}; tasks here: cats, pets"
    assert refusal(lambda: store.get("pets", "v9")) == (
        f"no version 'v9' of task 'pets' in {root}; versions here: v1, v2, v3"
    )
    empty = ArtifactStore.create(root / "cats" / "empty")
    assert refusal(lambda: empty.get("x")) == f"no task 'x' in {root}/cats/empty; tasks here: none"
    for action in (store.versions, store.current, store.rollback, store.remove, store.verify):
        assert refusal(lambda action=action: action("dogs")).startswith("no task 'dogs' in ")
    for versioned in (store.set_current, store.remove):
        assert refusal(lambda act=versioned: act("pets", "v9")).startswith("no version 'v9' of ")


@pytest.mark.parametrize("name", ["../out", "..", "/etc", "a/b", "", ".tmp", "pets\n", "v1\0"])
def test_names_that_lead_elsewhere_are_refused_everywhere(store: ArtifactStore, name: str) -> None:
    before = listing(store.root.parent)
    artifact = store.get("pets")
    for action in (
        lambda: store.get(name),
        lambda: store.get("pets", name),
        lambda: store.versions(name),
        lambda: store.current(name),
        lambda: store.put(name, make_tensors(), make_draft()),
        lambda: store.set_current("pets", name),
        lambda: store.remove(name),
        lambda: store.remove("pets", name),
        lambda: store.export_dir(artifact, name),
        lambda: store.replace_export(artifact, name).__enter__(),
        lambda: store.verify(name),
    ):
        assert "must be 1 to 64 of A-Z" in refusal(action)
    if name:
        with pytest.raises(StoreError, match="version must be 1 to 64"):
            store.put("pets", make_tensors(), make_draft(), version=name)
    with pytest.raises(ValueError, match="64 hex digits"):
        store.backbone_path(name)
    assert listing(store.root.parent) == before


@pytest.mark.parametrize(
    "linked",
    ["pets", "pets/v3", f"pets/v3/{MANIFEST}", f"pets/v3/{ADAPTER}", "pets/current"],
)
def test_a_link_that_leads_out_of_the_store_is_refused(
    store: ArtifactStore, tmp_path: Path, linked: str
) -> None:
    place, outside = store.root / linked, tmp_path / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    message = refusal(lambda: store.get("pets").tensors())
    if linked != "pets/v3":
        assert message == f"{place}: must not be a link, got one to {outside}. Remove it."
    assert store.verify() != []
    kept = outside.read_bytes() if outside.is_file() else listing(outside)
    if linked == "pets":
        assert refusal(lambda: make_artifact(store)).startswith(f"{place}: must not be a link")
        assert store.tasks() == ["cats"]
    elif linked == "pets/current":
        store.set_current("pets", "v1")
        assert not place.is_symlink()
    assert (outside.read_bytes() if outside.is_file() else listing(outside)) == kept


def test_exports_behind_a_link_are_neither_read_nor_replaced(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    artifact = store.get("pets")
    (artifact.path / "exports").symlink_to(tmp_path / "out")
    for action in (
        lambda: store.export_dir(artifact, "fp32"),
        lambda: store.replace_export(artifact, "fp32").__enter__(),
    ):
        assert "must not be a link" in refusal(action)
    assert "must not be a link" in store.verify("pets")[0].problem
    assert listing(tmp_path / "out") == []


@pytest.mark.parametrize("name", [".tmp", ".backbones", ".skeletons"])
def test_the_stores_own_folders_may_not_be_links(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    store = ArtifactStore.create(tmp_path / "store")
    (store.root / name).symlink_to(tmp_path / "out")
    tensors = {"w": np.ones(2, np.float32)}
    action = {
        ".tmp": lambda: make_artifact(store),
        ".backbones": lambda: store.put_backbone(fingerprint(tensors), tensors, {}),
        ".skeletons": lambda: store.skeletons,
    }[name]
    assert "must not be a link" in refusal(action)
    assert listing(tmp_path / "out") == []


def test_a_file_where_a_task_should_be_is_named(store: ArtifactStore) -> None:
    (store.root / "dogs").write_text("woof")
    assert refusal(lambda: store.get("dogs")) == (
        f"{store.root}/dogs: a task must be a folder, got a file. Move it away."
    )
    assert refusal(lambda: make_artifact(store, "dogs")) == (
        f"{store.root}/dogs: must be a folder, got a file"
    )
    assert store.tasks() == ["cats", "pets"]
    assert store.verify() == [
        Finding(None, None, f"{store.root}/dogs: is not a task. Move it away.")
    ]


def test_an_artifact_in_the_folder_of_another_is_refused(store: ArtifactStore) -> None:
    (store.root / "cats" / "v1").rename(store.root / "pets" / "v4")
    message = refusal(lambda: store.get("pets", "v4"), ArtifactError)
    assert message == (
        f"{store.root}/pets/v4/manifest.json: names cats/v1, the folder is pets/v4. "
        "Restore the folder."
    )
