"""How versions are put, numbered and ordered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import make_artifact, make_draft, make_store, make_tensors
from glora_deploy.errors import NonFiniteError
from glora_deploy.store import store as store_module
from glora_deploy.store.artifact import ADAPTER
from glora_deploy.store.store import ArtifactStore
from pets_store import listing, refusal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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
