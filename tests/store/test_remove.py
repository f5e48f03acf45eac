"""Removing a version, or a task."""

from __future__ import annotations

import pytest

from glora_deploy.store.store import ArtifactStore
from pets_store import listing, refusal, write_export

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_removing_a_version_leaves_the_others(store: ArtifactStore) -> None:
    store.remove("pets", "v2")
    assert store.versions("pets") == ["v1", "v3"]
    assert store.verify() == []
    assert list((store.root / ".tmp").iterdir()) == []


def test_the_current_version_is_removed_only_by_force(store: ArtifactStore) -> None:
    before = listing(store.root)
    assert refusal(lambda: store.remove("pets", "v3")) == (
        f"{store.root}/pets/v3: is the current version. Make another one current first, "
        "remove the whole task, or force it."
    )
    assert listing(store.root) == before
    store.remove("pets", "v3", force=True)
    assert store.versions("pets") == ["v1", "v2"]
    assert store.current("pets") is None
    assert store.verify() == []


def test_removing_a_task_removes_all_of_it(store: ArtifactStore) -> None:
    write_export(store, a="1")
    store.remove("pets")
    assert store.tasks() == ["cats"]
    assert not (store.root / "pets").exists()
    store.remove("cats", "v1", force=True)
    assert listing(store.root) == [".tmp"]
