"""The exports of a version: put in place whole, one after the other."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glora_deploy.store import atomic_files
from glora_deploy.store.store import ArtifactStore
from pets_store import listing, read_export, refusal, write_export

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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
