"""Versions side by side, by what is recorded and by their answers to the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from colour_files import N_TEST
from factories import make_artifact, make_store
from glora_deploy.errors import DataError, NotInStoreError, StoreError
from glora_deploy.evaluation import compare, evaluate
from glora_deploy.evaluation.compare_versions import Comparison
from glora_deploy.store.store import ArtifactStore


def difference(comparison: Comparison, what: str) -> tuple[str, ...] | None:
    return next((d.values for d in comparison.differences if d.what == what), None)


def test_all_versions_of_a_task_are_compared_with_the_current_one(store: ArtifactStore) -> None:
    found = compare(["colours"], store=store.root)
    assert [v.name for v in found.versions] == ["colours/v1", "colours/v2"]
    assert [v.is_current for v in found.versions] == [True, False]
    first, second = found.versions
    assert first.evaluation is not None
    assert second.evaluation is not None
    assert first.against_first is None
    against = second.against_first
    assert against is not None
    right = [evaluate("colours", v, store=store.root).predictions.correct for v in ("v1", "v2")]
    assert against.only_first == int((right[0] & ~right[1]).sum())
    assert against.only_second == int((right[1] & ~right[0]).sum())
    assert against.n_images == N_TEST
    assert 0 < against.p_value < 1
    for each in found.versions:
        assert each.evaluation is not None
        assert each.evaluation.metrics.accuracy == each.manifest.training.test_accuracy
        assert each.notes == ()


def test_a_version_against_a_copy_of_itself_is_no_different(own_store: ArtifactStore) -> None:
    artifact = own_store.get("colours", "v1")
    own_store.put("colours", artifact.tensors(), artifact.manifest, make_current=False)
    found = compare(["colours/v1", "colours/v3"], store=own_store.root)
    against = found.versions[1].against_first
    assert against is not None
    assert (against.p_value, against.n_discordant, against.difference) == (1.0, 0, 0.0)
    assert found.differences == ()


def test_what_was_chosen_otherwise_is_listed_and_nothing_else(store: ArtifactStore) -> None:
    found = compare(["colours"], store=store.root, measure=False)
    assert difference(found, "method") == ("glora", "lora")
    assert difference(found, "epochs") == ("8", "1")
    assert difference(found, "lr") == ("0.01", "1e-05")
    assert difference(found, "ranks") == ("3, 2", "2")
    assert difference(found, "search.population") == ("4", "")
    assert difference(found, "blocks.*.attn.qkv B") is not None
    for same in ("seed", "splits", "backbone", "backbone weights", "classes", "data", "dtype"):
        assert difference(found, same) is None
    # What came out of the training was not chosen.
    assert not [d for d in found.differences if "seconds" in d.what or "accuracy" in d.what]


def test_without_measuring_only_what_is_recorded_is_compared(own_store: ArtifactStore) -> None:
    shutil.rmtree(own_store.backbones)
    found = compare(["colours"], store=own_store.root, measure=False)
    assert all(v.evaluation is None and v.against_first is None for v in found.versions)
    assert found.data is None
    first = found.versions[0]
    training = first.manifest.training
    assert first.seconds is not None
    assert training.seconds is not None
    assert first.seconds > training.seconds  # with the search


def test_data_that_are_not_at_hand_are_said_to_be_missing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "artifacts", {"pets": 2})
    for path in store.root.glob("pets/*/manifest.json"):
        path.write_text(path.read_text("utf-8").replace('"digits"', '"folder"'), "utf-8")
    found = compare(["pets"], store=store.root)
    (note,) = found.notes
    assert note.startswith("nothing was measured: pets/v2: its manifest does not say where")
    assert [v.name for v in found.versions] == ["pets/v2", "pets/v1"]  # v2 is current
    assert all(v.evaluation is None for v in found.versions)
    with pytest.raises(DataError, match="PATH must be a folder"):
        compare(["pets"], store=store.root, data="folder:nowhere")


def test_versions_of_other_classes_are_compared_as_far_as_can_be(
    own_store: ArtifactStore,
) -> None:
    make_artifact(own_store, "pets")
    found = compare(["colours/v2", "pets/v1", "colours"], store=own_store.root)
    assert [v.name for v in found.versions] == ["colours/v2", "pets/v1", "colours/v1"]
    _, pets, last = found.versions
    assert pets.evaluation is None
    assert pets.against_first is None
    (note,) = pets.notes
    assert note.startswith("not measured: ")
    assert "classes that it does not: blue" in note
    assert last.against_first is not None
    classes = difference(found, "classes")
    assert classes is not None
    assert classes[0] == classes[2] == "3: blue, green, red"


def test_who_may_have_been_trained_on_the_images_is_said(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    shutil.copytree(colours, tmp_path / "fewer")
    next((tmp_path / "fewer" / "val" / "red").iterdir()).unlink()
    found = compare(["colours"], store=store.root, data=f"folder:{tmp_path / 'fewer'}")
    for each in found.versions:
        (note,) = each.notes
        assert note.startswith("was trained on other data or splits")
        assert each.evaluation is not None
        assert each.evaluation.metrics.n_images == N_TEST


def test_images_that_cannot_be_read_are_left_out_for_all(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    data = tmp_path / "damaged"
    shutil.copytree(colours, data)
    next((data / "test" / "blue").iterdir()).write_bytes(b"no image")
    told: list[tuple[str, int, int]] = []
    found = compare(
        ["colours"],
        store=store.root,
        data=f"folder:{data}",
        skip_unreadable=True,
        report=lambda *args: told.append(args),
    )
    against = found.versions[1].against_first
    assert against is not None
    assert against.n_images == N_TEST - 1
    assert told == [("colours/v1", N_TEST, N_TEST), ("colours/v2", N_TEST, N_TEST)]


def test_as_json_values_it_can_be_written(store: ArtifactStore) -> None:
    read = json.loads(json.dumps(compare(["colours"], store=store.root).to_dict()))
    first, second = read["versions"]
    assert first["measured"]["accuracy"] == first["test_accuracy"]
    assert first["against_first"] is None
    assert second["against_first"]["n_images"] == N_TEST
    (lr,) = [d["values"] for d in read["differences"] if d["what"] == "lr"]
    assert lr == {"colours/v1": "0.01", "colours/v2": "1e-05"}


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], ValueError, "two versions at least to compare, got none"),
        (["pets/v1"], ValueError, "two versions at least to compare, got pets/v1. Name another"),
        (["pets/v1", "pets/v1"], ValueError, "two versions at least"),
        (["birds"], ValueError, "two versions at least to compare, got birds/v1"),
        (["pets/v9", "pets/v1"], NotInStoreError, "no version 'v9' of task 'pets'"),
        (["cats", "pets"], NotInStoreError, "no task 'cats'"),
        (["../pets", "pets"], StoreError, "task must be 1 to 64 of"),
        (["pets/../v1", "pets"], StoreError, "version must be 1 to 64 of"),
    ],
)
def test_names_that_cannot_be_compared_are_refused(
    names: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    store = make_store(tmp_path, {"pets": 2, "birds": 1})
    with pytest.raises(error, match=message):
        compare(names, store=store.root, measure=False)


def test_a_task_without_a_current_version_starts_with_its_oldest(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"pets": 3})
    (tmp_path / "pets" / "current").unlink()
    found = compare(["pets"], store=store.root, measure=False)
    assert [v.name for v in found.versions] == ["pets/v1", "pets/v2", "pets/v3"]
    assert not any(v.is_current for v in found.versions)
    assert difference(found, "method") is None
