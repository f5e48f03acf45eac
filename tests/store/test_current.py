"""Which version answers: current and rollback."""

from __future__ import annotations

import os

import pytest

from factories import make_artifact
from glora_deploy.errors import ArtifactError
from glora_deploy.store.artifact import ADAPTER, MANIFEST
from glora_deploy.store.store import ArtifactStore
from pets_store import listing, refusal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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
