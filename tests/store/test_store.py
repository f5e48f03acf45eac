from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from factories import make_artifact, make_draft, make_store, make_tensors
from glora_deploy.errors import ArtifactError, NonFiniteError, StoreError
from glora_deploy.store import atomic_files, store as store_module
from glora_deploy.store.artifact import ADAPTER, MANIFEST
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.reader import StoreReader
from glora_deploy.store.store import ArtifactStore, Finding, TaskSize


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed, and when, is the subject of test_store_crash.py."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return make_store(tmp_path / "store", {"pets": 3, "cats": 1})


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refusal(action: Any, error: type[Exception] = StoreError) -> str:
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_export(store: ArtifactStore, precision: str = "fp32", **files: str) -> Path:
    """Put an export of text files in place, with the record of them."""
    artifact = store.get("pets")
    with store.replace_export(artifact, precision) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        record = ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=False)
        record.model_copy(update={"precision": precision}).write(folder)
    return store.export_dir(artifact, precision)


def read_export(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "export.json"}


# What lies on disk


def test_a_store_holds_exactly_what_the_format_says(store: ArtifactStore) -> None:
    assert listing(store.root) == [
        ".tmp",
        "cats",
        "cats/current",
        "cats/v1",
        "cats/v1/adapter.safetensors",
        "cats/v1/manifest.json",
        "pets",
        "pets/current",
        *(
            f"pets/v{n}{file}"
            for n in (1, 2, 3)
            for file in ("", "/adapter.safetensors", "/manifest.json")
        ),
    ]
    assert (store.root / "pets" / "current").read_bytes() == b"v3\n"


def test_folders_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = make_store(tmp_path / "store", {"pets": 1})
        write_export(store, a="1")
    finally:
        os.umask(before)
    for path in (store.root / "pets").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


# Versions


def test_tasks_are_listed_by_name_and_versions_oldest_first(store: ArtifactStore) -> None:
    assert store.tasks() == ["cats", "pets"]
    assert store.versions("pets") == ["v1", "v2", "v3"]
    assert store.current("pets") == "v3"


def test_each_version_keeps_its_own_tensors(store: ArtifactStore) -> None:
    for seed in (1, 2, 3):
        artifact = store.get("pets", f"v{seed}")
        assert (artifact.task, artifact.version) == ("pets", f"v{seed}")
        assert artifact.path == store.root / "pets" / f"v{seed}"
        found = artifact.tensors()
        for name, tensor in make_tensors(seed=seed).items():
            assert np.array_equal(found[name], tensor)
    assert store.get("pets") == store.get("pets", "v3")


def test_the_tenth_version_comes_after_the_ninth_even_if_the_clock_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "utc_now", lambda: "2026-01-01T00:00:00.000000Z")
    store = make_store(tmp_path, {"pets": 11})
    assert store.versions("pets") == [f"v{n}" for n in range(1, 12)]
    assert store.rollback("pets").version == "v10"


def test_a_clock_set_back_does_not_change_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, {"pets": 1})
    monkeypatch.setattr(store_module, "utc_now", lambda: "1999-01-01T00:00:00.000000Z")
    make_artifact(store)
    assert store.versions("pets") == ["v1", "v2"]


def test_named_versions_are_ordered_by_time_and_numbering_goes_on_after_the_highest(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path)
    draft, tensors = make_draft(), make_tensors()
    for version in ("prod", "v7", "a"):
        assert store.put("pets", tensors, draft, version=version).version == version
    assert make_artifact(store).version == "v8"
    assert store.versions("pets") == ["prod", "v7", "a", "v8"]


def test_numbering_steps_over_whatever_has_the_name(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"pets": 1})
    (tmp_path / "pets" / "v2").write_text("not mine")
    (tmp_path / "pets" / "v3").mkdir()
    (tmp_path / "pets" / "v04").mkdir()
    assert make_artifact(store).version == "v4"
    assert (tmp_path / "pets" / "v2").read_text() == "not mine"


def test_a_version_that_exists_is_never_replaced(store: ArtifactStore) -> None:
    before = listing(store.root)
    data = (store.root / "pets" / "v2" / ADAPTER).read_bytes()
    message = refusal(lambda: store.put("pets", make_tensors(), make_draft(), version="v2"))
    assert message == (
        f"{store.root}/pets/v2: the version must be new, it exists. "
        "Give another one, or remove it first."
    )
    assert listing(store.root) == before
    assert (store.root / "pets" / "v2" / ADAPTER).read_bytes() == data


def test_a_version_can_be_put_without_becoming_current(store: ArtifactStore) -> None:
    store.put("pets", make_tensors(), make_draft(), make_current=False)
    assert store.current("pets") == "v3"
    store.put("dogs", make_tensors(), make_draft(), make_current=False)
    assert store.current("dogs") is None
    assert refusal(lambda: store.get("dogs")) == (
        f"{store.root}/dogs/current: is missing, so no version is current; versions here: v1. "
        "Name a version, or make one current."
    )
    assert store.verify() == []


def test_two_puts_that_choose_the_same_number_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = make_store(tmp_path), ArtifactStore(tmp_path)
    write = store_module.write_artifact
    written: list[str] = []

    def slow_write(*args: Any, **names: Any) -> Any:
        monkeypatch.setattr(store_module, "write_artifact", write)
        written.append(make_artifact(other, seed=2).version)
        return write(*args, **names)

    monkeypatch.setattr(store_module, "write_artifact", slow_write)
    assert make_artifact(store, seed=1).version == "v2"
    assert written == ["v1"]
    for version, seed in (("v1", 2), ("v2", 1)):
        found = store.get("pets", version).tensors()["head.bias"]
        assert np.array_equal(found, make_tensors(seed=seed)["head.bias"])
    assert store.verify() == []
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_refused_delta_leaves_the_store_as_it_was(store: ArtifactStore) -> None:
    before = listing(store.root)
    bad = make_tensors()
    bad["head.bias"][0] = np.nan
    for task in ("pets", "new"):
        with pytest.raises(NonFiniteError):
            store.put(task, bad, make_draft())
        with pytest.raises(ValueError, match="must be present"):
            store.put(task, {"head.bias": bad["head.bias"]}, make_draft())
    assert listing(store.root) == before


# Current and rollback


def test_rollback_goes_back_one_by_one_and_stops_at_the_oldest(store: ArtifactStore) -> None:
    assert store.rollback("pets").version == "v2"
    assert store.current("pets") == "v2"
    assert store.rollback("pets").version == "v1"
    assert refusal(lambda: store.rollback("pets")) == (
        f"{store.root}/pets: v1 is the oldest version, there is none to roll back to; "
        "versions here: v1, v2, v3"
    )
    assert store.current("pets") == "v1"
    assert store.set_current("pets", "v3").version == "v3"
    assert store.get("pets").version == "v3"


@pytest.mark.parametrize("file", [MANIFEST, ADAPTER])
def test_a_damaged_version_keeps_its_place_but_never_becomes_current(
    store: ArtifactStore, file: str
) -> None:
    path = store.root / "pets" / "v2" / file
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text("{")
    os.utime(path, ns=times)
    assert store.versions("pets") == ["v1", "v2", "v3"]
    for action in (lambda: store.set_current("pets", "v2"), lambda: store.rollback("pets")):
        assert f"pets/v2/{file}: " in refusal(action, ArtifactError)
    assert store.current("pets") == "v3"
    assert store.set_current("pets", "v1").version == "v1"


@pytest.mark.parametrize("file", [MANIFEST, ADAPTER])
def test_rollback_leads_away_from_a_damaged_version(store: ArtifactStore, file: str) -> None:
    (store.root / "pets" / "v3" / file).write_text("{")
    assert store.rollback("pets").version == "v2"
    assert store.get("pets").version == "v2"


def test_rollback_without_a_current_version_is_refused(store: ArtifactStore) -> None:
    current = store.root / "pets" / "current"
    current.write_text("v9\n")
    assert refusal(lambda: store.rollback("pets")) == (
        f"{current}: names v9; versions here: v1, v2, v3. Name a version, or make one current."
    )
    assert refusal(lambda: store.get("pets")) == refusal(lambda: store.rollback("pets"))


@pytest.mark.parametrize("content", [b"", b"\n", b"../../etc", b"v1\nv2\n", b"v1\n\n", b"\xff"])
def test_a_current_file_that_names_no_version_is_refused(
    store: ArtifactStore, content: bytes
) -> None:
    (store.root / "pets" / "current").write_bytes(content)
    message = refusal(lambda: store.get("pets"))
    assert message.startswith(f"{store.root}/pets/current: ")
    assert [(f.task, f.version) for f in store.verify()] == [("pets", None)]
    store.set_current("pets", "v1")
    assert store.verify() == []


def test_a_folder_where_current_should_be_is_named_and_nothing_is_put(store: ArtifactStore) -> None:
    current = store.root / "pets" / "current"
    current.unlink()
    current.mkdir()
    before = listing(store.root)
    for action in (lambda: make_artifact(store), lambda: store.set_current("pets", "v1")):
        assert refusal(action) == f"{current}: must be a file, got a folder. Remove it."
    assert listing(store.root) == before


# Removing


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


# Names, links, and things in the way


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


def test_a_store_reached_through_a_link_is_an_ordinary_store(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(store.root)
    linked = ArtifactStore.open(tmp_path / "link")
    assert make_artifact(linked).version == "v4"
    assert store.current("pets") == "v4"


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


def test_opening_and_reading_write_nothing(store: ArtifactStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    again = ArtifactStore.open(store.root)
    again.get("pets").tensors()
    again.versions("pets")
    again.verify()
    again.sizes()
    after = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.rglob("*"))}
    assert after == before


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


# Exports


def test_an_export_takes_its_place_once_the_block_is_done(store: ArtifactStore) -> None:
    artifact = store.get("pets")
    place = store.export_dir(artifact, "fp16")
    assert place == store.root / "pets/v3/exports/fp16"
    with store.replace_export(artifact, "fp16") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not place.exists()
        assert folder.is_relative_to(store.root / ".tmp")
    assert listing(place) == ["sub", "sub/a"]
    assert listing(store.root / ".tmp") == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_export_replaces_the_one_before(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic_files, "_exchange", lambda a, b: False)
    write_export(store, a="1", b="2")
    place = write_export(store, a="3")
    assert read_export(place) == {"a": "3"}
    assert listing(store.root / ".tmp") == []
    assert store.verify() == []


def test_a_failed_export_leaves_the_one_before(store: ArtifactStore) -> None:
    artifact = store.get("pets")

    def fail(precision: str) -> None:
        with store.replace_export(artifact, precision) as folder:
            (folder / "a").write_text("new")
            raise KeyboardInterrupt

    place = write_export(store, a="old")
    for precision in ("fp32", "fp16"):
        with pytest.raises(KeyboardInterrupt):
            fail(precision)
    assert read_export(place) == {"a": "old"}
    assert listing(artifact.path / "exports") == ["fp32", "fp32/a", "fp32/export.json"]
    assert listing(store.root / ".tmp") == []


def test_a_file_can_be_carried_over_without_a_copy(store: ArtifactStore) -> None:
    place = write_export(store, weights="heavy")
    inode = (place / "weights").stat().st_ino
    artifact = store.get("pets")
    with store.replace_export(artifact, "fp32") as folder:
        os.link(store.export_dir(artifact, "fp32") / "weights", folder / "weights")
        (folder / "graph").write_text("new")
    assert read_export(place) == {"weights": "heavy", "graph": "new"}
    assert (place / "weights").stat().st_ino == inode
    assert (place / "weights").stat().st_nlink == 1


def test_exports_of_one_artifact_wait_for_each_other_and_lose_nothing(store: ArtifactStore) -> None:
    def add(name: str) -> None:
        own = ArtifactStore.open(store.root)
        artifact = own.get("pets")
        with own.replace_export(artifact, "fp32") as folder:
            old = own.export_dir(artifact, "fp32")
            for path in old.iterdir() if old.is_dir() else ():
                os.link(path, folder / path.name)
            time.sleep(0.02)
            (folder / name).write_text(name)

    threads = [threading.Thread(target=add, args=(f"f{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    place = store.export_dir(store.get("pets"), "fp32")
    assert sorted(read_export(place)) == [f"f{n}" for n in range(8)]


def test_a_reader_never_finds_an_export_missing_while_it_is_replaced(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    if not atomic_files._exchange(tmp_path / "x", tmp_path / "y"):
        pytest.skip("this system cannot exchange two folders")
    place = write_export(store, a="old")
    seen: list[str] = []
    rename = os.rename

    def watched(source: Any, target: Any) -> None:
        try:
            rename(source, target)
        finally:
            seen.append((place / "a").read_text())

    monkeypatch.setattr(os, "rename", watched)
    write_export(store, a="new")
    assert seen == ["old"]  # the one rename that is tried finds the place taken
    assert read_export(place) == {"a": "new"}


def test_an_export_of_an_artifact_removed_meanwhile_is_refused(store: ArtifactStore) -> None:
    artifact = store.get("pets", "v1")

    def export(meanwhile: Any = lambda: None) -> None:
        with store.replace_export(artifact, "fp32") as folder:
            (folder / "a").write_text("1")
            meanwhile()

    gone = f"{artifact.path}: pets/v1 is not in the store"
    assert refusal(lambda: export(lambda: store.remove("pets", "v1"))) == gone
    assert refusal(export) == gone
    assert listing(store.root / ".tmp") == []


def test_the_errors_of_an_exporter_are_its_own(store: ArtifactStore) -> None:
    def export() -> None:
        with store.replace_export(store.get("pets"), "fp32"):
            raise FileNotFoundError("weights")

    with pytest.raises(FileNotFoundError, match="weights"):
        export()


# Backbones and caches

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


# Verify and sizes


def rewrite(path: Path, **changes: Any) -> None:
    """Replace fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def damage(store: ArtifactStore, what: str) -> None:
    v2, exports = store.root / "pets/v2", store.root / "pets/v3/exports"
    match what:
        case "adapter":
            with (v2 / ADAPTER).open("rb+") as file:
                file.write(b"\x01")
        case "no adapter":
            (v2 / ADAPTER).unlink()
        case "manifest":
            (v2 / MANIFEST).write_text("{}")
        case "stray in version":
            (v2 / "notes.txt").write_text("")
        case "stray in task":
            (store.root / "pets/readme").write_text("")
        case "folder without manifest":
            (store.root / "pets/v9").mkdir()
        case "current":
            (store.root / "pets/current").write_text("v9\n")
        case "current is a folder":
            (store.root / "pets/current").unlink()
            (store.root / "pets/current").mkdir()
        case "export changed":
            (exports / "fp32/a").write_text("2")
        case "export grown":
            (exports / "fp32/a").write_text("11")
        case "export missing":
            (exports / "fp32/a").unlink()
        case "export stray":
            (exports / "fp32/extra").write_text("")
        case "export linked":
            (exports / "fp32/a").rename(store.root.parent / "a")
            (exports / "fp32/a").symlink_to(store.root.parent / "a")
        case "export record":
            rewrite(exports / "fp32/export.json", files={"a": 1})
        case "export without record":
            (exports / "fp32/export.json").unlink()
        case "export is a file":
            (exports / "fp16").write_text("")


DAMAGES = {
    "adapter": ("v2", "pets/v2/adapter.safetensors: sha256 is "),
    "no adapter": ("v2", "pets/v2/adapter.safetensors: must be a file, there is none."),
    "manifest": ("v2", "pets/v2/manifest.json: must be an object with format_version."),
    "stray in version": ("v2", "pets/v2/notes.txt: is not part of an artifact."),
    "stray in task": (None, "pets/readme: is not part of a store."),
    "folder without manifest": (None, "pets/v9: is not part of a store."),
    "current": (None, "pets/current: names v9; versions here: v1, v2, v3."),
    "current is a folder": (None, "pets/current: must be a file that names a version"),
    "export changed": ("v3", "pets/v3/exports/fp32/a: sha256 is "),
    "export grown": ("v3", "pets/v3/exports/fp32/a: has 2 bytes on disk, 1 in export.json."),
    "export missing": ("v3", "pets/v3/exports/fp32/a: must be here by export.json."),
    "export stray": ("v3", "pets/v3/exports/fp32/extra: is not in export.json."),
    "export linked": ("v3", "pets/v3/exports/fp32/a: must not be a link"),
    "export record": ("v3", "pets/v3/exports/fp32/export.json: files.a: must be"),
    "export without record": ("v3", "pets/v3/exports/fp32/export.json: must be a file"),
    "export is a file": ("v3", "pets/v3/exports/fp16/export.json: must be a file"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_verify_names_whatever_is_damaged_and_only_that(store: ArtifactStore, what: str) -> None:
    write_export(store, a="1")
    assert store.verify() == []
    damage(store, what)
    (finding,) = store.verify()
    version, problem = DAMAGES[what]
    assert (finding.task, finding.version) == ("pets", version)
    assert finding.problem.startswith(f"{store.root}/{problem}")
    assert "\n" not in finding.problem
    assert store.verify("pets") == [finding]
    assert store.verify("cats") == []


def test_verify_goes_on_after_the_first_problem(store: ArtifactStore) -> None:
    write_export(store, a="1")
    whats = ("no adapter", "stray in task", "current", "export missing", "export stray")
    for what in whats:
        damage(store, what)
    (store.root / "cats" / "v1" / ADAPTER).unlink()
    assert len(store.verify()) == len(whats) + 1


def test_sizes_are_the_bytes_on_disk_and_count_a_linked_file_once(store: ArtifactStore) -> None:
    def size(*names: str) -> int:
        return sum((store.root / name).stat().st_size for name in names)

    place = write_export(store, a="12345")
    artifact = store.get("pets")
    with store.replace_export(artifact, "fp16") as folder:
        os.link(place / "a", folder / "a")
        (folder / MANIFEST).write_text("123")
    record = size("pets/v3/exports/fp32/export.json")
    deltas = [f"pets/v{n}/{name}" for n in (1, 2, 3) for name in (MANIFEST, ADAPTER)]
    assert store.sizes() == {
        "cats": TaskSize(size(f"cats/v1/{MANIFEST}", f"cats/v1/{ADAPTER}"), 0),
        "pets": TaskSize(size(*deltas), 5 + 3 + record),
    }


# Leftovers


@pytest.fixture
def leftovers(store: ArtifactStore) -> dict[str, Path]:
    """Scratch folders as different processes would have left them."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    host = atomic_files._host()
    tmp = store.root / ".tmp"
    folders = {
        "dead": tmp / f"{host}-{child}-{'0' * 16}",
        "alive": tmp / f"{host}-{os.getppid()}-{'1' * 16}",
        "alive, old": tmp / f"{host}-{os.getppid()}-{'2' * 16}",
        "elsewhere": tmp / f"00000000-{child}-{'3' * 16}",
        "elsewhere, old": tmp / f"00000000-{child}-{'4' * 16}",
        "not ours": tmp / "notes",
    }
    for name, folder in folders.items():
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text("x")
        if "old" in name or name == "not ours":
            day_ago = time.time() - 24 * 3600 - 60
            os.utime(folder, (day_ago, day_ago))
    return folders


@pytest.mark.parametrize("by", ["create", "put", "export"])
def test_what_dead_processes_left_is_swept_and_nothing_else(
    store: ArtifactStore, leftovers: dict[str, Path], by: str
) -> None:
    match by:
        case "create":
            ArtifactStore.create(store.root)
        case "put":
            make_artifact(store)
        case "export":
            write_export(store, a="1")
    kept = {name for name, folder in leftovers.items() if folder.exists()}
    assert kept == {"alive", "elsewhere", "not ours"}
    for name in kept:
        assert (leftovers[name] / "sub" / "file").read_text() == "x"
    assert store.verify() == []


def test_reading_needs_only_the_reader(store: ArtifactStore) -> None:
    reader = StoreReader(store.root)
    assert reader.get("pets").tensors().keys() == make_tensors().keys()
    assert not hasattr(reader, "put")
