"""Nothing that a version needs is pruned, not even by a process that comes between two steps."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from factories import make_draft, make_tensors
from glora_deploy.errors import StoreError
from glora_deploy.store import (
    graph_key as skeleton_key,
    prune as prune_module,
    store as store_module,
)
from glora_deploy.store.artifact import MANIFEST
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.folder_lock import OpenFolder
from glora_deploy.store.graph_key import skeleton_key_of
from glora_deploy.store.prune import Unused, prune
from glora_deploy.store.store import ArtifactStore

BACKBONES = tuple({"w": np.full((5, 3), value, np.float32)} for value in (1, 2))
DIGESTS = tuple(map(fingerprint, BACKBONES))


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def put_backbone(store: ArtifactStore, n: int) -> Path:
    return store.put_backbone(DIGESTS[n], BACKBONES[n], {"name": "toy"})


def put(store: ArtifactStore, task: str, n: int) -> None:
    draft = make_draft()
    recorded = draft.backbone.model_copy(update={"fingerprint": DIGESTS[n]})
    store.put(task, make_tensors(), draft.model_copy(update={"backbone": recorded}))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Pets on the first backbone, cats on the second."""
    store = ArtifactStore.create(tmp_path / "store")
    for n, task in enumerate(("pets", "cats")):
        put_backbone(store, n)
        put(store, task, n)
    return store


@pytest.fixture
def other(store: ArtifactStore) -> ArtifactStore:
    """The same store in another process, while the first has ended."""
    store.release_backbones()
    return ArtifactStore(store.root)


def test_a_backbone_goes_with_the_last_version_that_uses_it(store: ArtifactStore) -> None:
    assert prune(store) == []
    put(store, "dogs", 1)
    store.remove("cats")
    assert prune(store) == []
    store.remove("dogs", "v1", force=True)
    folder = store.root / ".backbones" / DIGESTS[1]
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert prune(store, dry_run=True) == [Unused(folder, n_bytes)]
    assert folder.is_dir()
    assert prune(store) == [Unused(folder, n_bytes)]
    assert store.backbone_names() == [DIGESTS[0]]
    assert list((store.root / ".tmp").iterdir()) == []
    assert prune(store) == []
    assert store.verify() == store.without_backbone() == []


def test_a_dry_run_writes_nothing(store: ArtifactStore) -> None:
    store.remove("cats")
    before = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    assert len(prune(ArtifactStore.open(store.root), dry_run=True)) == 1
    after = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    assert after == before


def test_nothing_is_pruned_while_what_a_version_needs_is_unknown(store: ArtifactStore) -> None:
    (store.root / "cats/v1" / MANIFEST).write_text("{")
    with pytest.raises(StoreError) as caught:
        prune(store)
    assert str(caught.value).endswith(
        "Nothing is pruned as long as what cats/v1 needs is not known: restore or remove it."
    )
    assert store.backbone_names() == sorted(DIGESTS)


# Beside a process that is about to use a backbone


def test_a_backbone_that_was_put_stays_until_its_version_is_there(
    store: ArtifactStore, other: ArtifactStore
) -> None:
    store.remove("cats")
    place = put_backbone(store, 1)  # it is there already, and used by nobody
    assert [(unused.path, unused.in_use) for unused in prune(other)] == [(place, True)]
    put(store, "dogs", 1)
    assert prune(other) == []
    assert store.without_backbone() == []


def test_a_new_backbone_is_held_before_anyone_can_see_it(
    store: ArtifactStore, other: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.remove("cats")
    prune(other)
    assert other.backbone_names() == [DIGESTS[0]]
    real, seen = store_module.move_in, []

    def watched(new: Path, place: Path) -> bool:
        moved = real(new, place)
        with OpenFolder(place) as folder:
            seen.append(folder.lock(wait=False))
        return moved

    monkeypatch.setattr(store_module, "move_in", watched)
    place = put_backbone(store, 1)
    assert seen == [False]
    assert [(unused.path, unused.in_use) for unused in prune(other)] == [(place, True)]


def test_what_a_dead_process_put_is_pruned(store: ArtifactStore) -> None:
    store.remove("cats")
    dying = ArtifactStore(store.root)
    put_backbone(dying, 1)
    store.release_backbones()
    assert [unused.in_use for unused in prune(store)] == [True]
    del dying
    gc.collect()
    assert [unused.in_use for unused in prune(store)] == [False]


def test_a_version_stored_between_two_looks_keeps_its_backbone(
    store: ArtifactStore, other: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.remove("cats")
    real = prune_module._unused_names

    def listed_before(pruned: ArtifactStore) -> list[str]:
        found = real(pruned)
        monkeypatch.setattr(prune_module, "_unused_names", real)
        put(store, "dogs", 1)
        store.release_backbones()  # its process has ended
        return found

    monkeypatch.setattr(prune_module, "_unused_names", listed_before)
    assert prune(other) == []
    assert store.without_backbone() == []


@pytest.mark.parametrize("step", ["put_backbone", "put"])
def test_whoever_comes_while_a_backbone_is_removed_waits(
    store: ArtifactStore, other: ArtifactStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    other.remove("cats")
    real, threads = other.remove_backbone, []

    def act() -> None:
        if step == "put_backbone":
            put_backbone(store, 1)
        put(store, "dogs", 1)

    def meanwhile(name: str) -> None:
        thread = threading.Thread(target=act)
        threads.append(thread)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert store.tasks() == ["pets"]
        real(name)

    monkeypatch.setattr(other, "remove_backbone", meanwhile)
    assert [unused.in_use for unused in prune(other)] == [False]
    threads[0].join()
    lacking = [finding.task for finding in store.without_backbone()]
    # A version whose backbone nobody has put is stored all the same, and verify says so.
    assert lacking == ([] if step == "put_backbone" else ["dogs"])
    assert store.verify() == []


def test_where_nothing_can_be_locked_nothing_is_pruned(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.remove("cats")
    monkeypatch.setattr(OpenFolder, "lock", lambda *_, **__: False)
    assert [unused.in_use for unused in prune(store)] == [True]
    assert store.backbone_names() == sorted(DIGESTS)


# Cached graphs


def test_graphs_that_no_export_would_read_go(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = store.get("pets").manifest
    live, stale = (store.skeletons / f"{key}.onnx" for key in (skeleton_key_of(manifest), "0" * 64))
    for path in (live, stale):
        path.write_bytes(b"12345")
    (store.skeletons / "notes").write_text("")
    assert prune(store, dry_run=True) == [Unused(stale, 5)]
    assert prune(store) == [Unused(stale, 5)]
    assert sorted(path.name for path in store.skeletons.iterdir()) == [live.name, "notes"]
    monkeypatch.setattr(skeleton_key, "version", lambda library: "0")
    assert prune(store) == [Unused(live, 5)]


def test_graphs_stay_where_nobody_can_tell_which_are_stale(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeleton_key, "LIBRARIES", ("a-library-that-nobody-installed",))
    (store.skeletons / f"{'0' * 64}.onnx").write_bytes(b"")
    assert prune(store) == []
