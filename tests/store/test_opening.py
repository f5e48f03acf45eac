"""Opening a store, and reading it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from factories import make_artifact, make_tensors
from glora_deploy.store.reader import StoreReader
from glora_deploy.store.store import ArtifactStore
from pets_store import refusal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_opening_needs_a_folder_that_exists(tmp_path: Path) -> None:
    advice = "Train a task into it, or give the folder of another store."
    missing = tmp_path / "no" / "store"
    assert refusal(lambda: ArtifactStore.open(missing)) == (
        f"{missing}: the store must be a folder, got nothing there. {advice}"
    )
    assert not missing.exists()
    (tmp_path / "file").write_text("")
    assert refusal(lambda: ArtifactStore.open(tmp_path / "file")) == (
        f"{tmp_path}/file: the store must be a folder, got a file. {advice}"
    )
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        assert refusal(lambda place=place: ArtifactStore.create(place)) == (
            f"{place}: the store must be a folder, a file is in the way"
        )
    assert ArtifactStore.create(missing).tasks() == []
    assert ArtifactStore.open(str(missing)).tasks() == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert refusal(lambda: ArtifactStore.create(tmp_path)) == (
        f"{tmp_path}: the store must be writable, this user may not write to it; it is as it was. "
        "Change who may, or give a copy of it with --store."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_store_reached_through_a_link_is_an_ordinary_store(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(store.root)
    linked = ArtifactStore.open(tmp_path / "link")
    assert make_artifact(linked).version == "v4"
    assert store.current("pets") == "v4"


def test_opening_and_reading_write_nothing(store: ArtifactStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    again = ArtifactStore.open(store.root)
    again.get("pets").tensors()
    again.versions("pets")
    again.verify()
    again.sizes()
    after = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    assert after == before


def test_reading_needs_only_the_reader(store: ArtifactStore) -> None:
    reader = StoreReader(store.root)
    assert reader.get("pets").tensors().keys() == make_tensors().keys()
    assert not hasattr(reader, "put")
