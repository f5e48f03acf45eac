"""Versions that were really trained, evaluated by delta and by export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from colour_files import N_MISLABELLED, N_TEST
from glora_deploy.errors import (
    BackboneMismatchError,
    DataError,
    NonFiniteError,
    NotInStoreError,
    StoreError,
)
from glora_deploy.evaluation import evaluate, evaluate_on, load_images
from glora_deploy.serving import Predictor
from glora_deploy.store.store import ArtifactStore

ATOL = 1e-4  # float32 logits near 1, summed in another order


def test_on_the_recorded_data_the_accuracy_is_the_recorded_one(store: ArtifactStore) -> None:
    for version in ("v1", "v2"):
        found = evaluate("colours", version, store=store.root)
        recorded = store.get("colours", version).manifest.training
        assert found.metrics.accuracy == recorded.test_accuracy == found.recorded_accuracy
        assert found.metrics.n_images == N_TEST
        assert (found.task, found.version, found.network) == ("colours", version, "delta")
        assert found.splits_sha256 == recorded.splits_sha256
        assert not [note for note in found.notes if "changed" in note]


def test_the_delta_and_its_export_answer_alike(store: ArtifactStore) -> None:
    delta = evaluate("colours", store=store.root)
    predictor = Predictor.from_store(store.root, "colours")
    onnx = evaluate("colours", store=store.root, network=predictor)
    assert (onnx.network, onnx.precision, onnx.version) == ("onnx", "fp32", "v1")
    assert onnx.delta_sha256 == delta.delta_sha256
    assert onnx.predictions.logits == pytest.approx(delta.predictions.logits, abs=ATOL)
    assert np.array_equal(onnx.metrics.confusion, delta.metrics.confusion)
    assert onnx.recorded_accuracy == delta.recorded_accuracy
    assert len({tuple(row) for row in delta.predictions.logits.tolist()}) == N_TEST


def test_it_learned_the_colours_and_no_one_can_learn_the_wrong_labels(
    store: ArtifactStore,
) -> None:
    metrics = evaluate("colours", store=store.root).metrics
    assert metrics.n_correct == N_TEST - N_MISLABELLED
    assert sum(pair.n_images for pair in metrics.most_confused()) == N_MISLABELLED
    assert evaluate("colours", "v2", store=store.root).metrics.accuracy < 0.7


@pytest.mark.parametrize(("split", "n"), [("train", 36), ("val", 18), ("all", 36 + 18 + N_TEST)])
def test_other_splits_are_evaluated_too(store: ArtifactStore, split: str, n: int) -> None:
    found = evaluate("colours", store=store.root, split=split)  # type: ignore[arg-type]
    assert found.metrics.n_images == n
    assert found.recorded_accuracy is None
    assert "expect less on images that are new to it" in found.notes[-1]


def test_the_same_images_with_the_classes_in_another_order_give_the_same(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    # Classes are sorted by name: a list with its own classes.txt can have any order.
    order = ("green", "blue", "red")
    lines = {
        split: "\n".join(
            f"{path.relative_to(colours)} {label}"
            for label, name in enumerate(order)
            for path in sorted((colours / split / name).glob("*.png"), reverse=True)
        )
        for split in ("train", "val", "test")
    }
    shutil.copytree(colours, tmp_path / "lists")
    for split, text in lines.items():
        (tmp_path / "lists" / f"{split}.txt").write_text(text)
    (tmp_path / "lists" / "classes.txt").write_text("\n".join(order))
    own = evaluate("colours", store=store.root)
    found = evaluate("colours", store=store.root, data=f"lists:{tmp_path / 'lists'}")
    assert found.predictions.images.ids != own.predictions.images.ids
    assert not np.array_equal(found.predictions.images.labels, found.predictions.targets)
    assert np.array_equal(found.metrics.confusion, own.metrics.confusion)
    assert found.recorded_accuracy is None


def test_a_class_that_the_network_does_not_know_is_refused_by_name(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    shutil.copytree(colours, tmp_path / "more")
    for split in ("train", "test"):
        (tmp_path / "more" / split / "red").rename(tmp_path / "more" / split / "pink")
    with pytest.raises(DataError) as caught:
        evaluate(
            "colours",
            store=store.root,
            data=f"folder:{tmp_path / 'more'}?split=train=train,val=0.2,test=test",
        )
    assert "1 class that it does not: pink (6 images)" in str(caught.value)
    assert "It knows blue, green, red" in str(caught.value)


def test_a_class_without_images_in_the_split_need_not_be_known(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    data = tmp_path / "more"
    shutil.copytree(colours, data)
    shutil.copytree(data / "train" / "red", data / "train" / "pink")
    found = evaluate("colours", store=store.root, data=f"folder:{data}")
    assert np.array_equal(
        found.metrics.confusion, evaluate("colours", store=store.root).metrics.confusion
    )


def test_it_is_said_when_the_recorded_data_have_changed(
    store: ArtifactStore, own_store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    spec = f"folder:{colours}"
    moved = tmp_path / "moved"
    shutil.copytree(colours, moved)
    _rename_data(own_store, spec, f"folder:{moved}")
    same = evaluate("colours", store=own_store.root)
    assert same.recorded_accuracy is not None
    next((moved / "test" / "red").iterdir()).unlink()
    changed = evaluate("colours", store=own_store.root)
    assert changed.metrics.n_images == N_TEST - 1
    assert changed.recorded_accuracy is None
    (note,) = [note for note in changed.notes if "has changed since colours/v1 was" in note]
    assert str(moved) in note


def test_what_is_not_at_hand_is_asked_for(own_store: ArtifactStore, colours: Path) -> None:
    _rename_data(own_store, f"folder:{colours}", "folder")
    with pytest.raises(DataError, match=r"where its data \(folder\) lie. Give --data"):
        evaluate("colours", store=own_store.root)
    found = evaluate("colours", store=own_store.root, data=f"folder:{colours}")
    assert found.recorded_accuracy == found.metrics.accuracy
    with pytest.raises(DataError, match="data: must be given"):
        load_images()


def test_an_image_that_cannot_be_read_is_named_or_skipped(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    data = tmp_path / "damaged"
    shutil.copytree(colours, data)
    broken = sorted((data / "test" / "green").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        evaluate("colours", store=store.root, data=f"folder:{data}")
    assert str(broken) in str(caught.value)
    assert str(caught.value).endswith("leave it out with --skip-unreadable.")
    found = evaluate("colours", store=store.root, data=f"folder:{data}", skip_unreadable=True)
    name = f"test/green/{broken.name}"
    assert found.predictions.skipped == (name,)
    assert name not in found.predictions.images.ids
    assert found.metrics.n_images == N_TEST - 1
    assert f"left out 1 unreadable image: {name}" in found.notes
    whole = evaluate("colours", store=store.root)
    kept = [i for i, each in enumerate(whole.predictions.images.ids) if each != name]
    assert found.predictions.logits == pytest.approx(whole.predictions.logits[kept], abs=ATOL)
    assert np.array_equal(found.predictions.targets, whole.predictions.targets[kept])


def test_the_size_of_the_batch_changes_nothing_and_progress_counts_images(
    store: ArtifactStore,
) -> None:
    told: list[tuple[int, int]] = []
    small = evaluate(
        "colours", store=store.root, batch_size=8, report=lambda *args: told.append(args)
    )
    assert told == [(8, N_TEST), (16, N_TEST), (N_TEST, N_TEST)]
    one = evaluate("colours", store=store.root)
    assert small.predictions.logits == pytest.approx(one.predictions.logits, abs=ATOL)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate("colours", store=store.root, batch_size=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_delta_answers_alike(store: ArtifactStore) -> None:
    on_cpu = evaluate("colours", store=store.root, device="cpu").predictions
    on_gpu = evaluate("colours", store=store.root, device="cuda").predictions
    assert np.array_equal(on_gpu.predicted, on_cpu.predicted)
    # cuDNN rounds the inputs of a convolution to 10 bits.
    assert on_gpu.probabilities == pytest.approx(on_cpu.probabilities, abs=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match=r"torch finds none. Use --device cpu"):
        evaluate("colours", store=store.root, device="cuda")


class Shifted:
    """A classifier of somebody's own: another version's network, or one that fails."""

    def __init__(self, inner: Predictor, add: float, delta_sha256: str) -> None:
        self.task, self.version, self.precision = "elsewhere", "v9", inner.precision
        self.labels, self.preprocessing = inner.labels, inner.preprocessing
        self.delta_sha256 = delta_sha256
        self._inner, self._add = inner, add

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._inner.logits(images) + np.float32(self._add)


def test_a_network_of_another_delta_is_said_to_be_one(store: ArtifactStore) -> None:
    network = Shifted(Predictor.from_store(store.root, "colours"), 1.0, "ab" * 32)
    found = evaluate("colours", store=store.root, network=network, network_name="mine")
    assert (found.task, found.version, found.network) == ("elsewhere", "v9", "mine")
    assert found.recorded_accuracy is None
    assert [note for note in found.notes if "not of colours/v1" in note]


def test_answers_that_are_no_numbers_are_refused(store: ArtifactStore) -> None:
    network = Shifted(Predictor.from_store(store.root, "colours"), np.nan, "ab" * 32)
    with pytest.raises(NonFiniteError, match=r"elsewhere/v9: logits must be finite, .* for test/"):
        evaluate("colours", store=store.root, network=network)


def test_an_exported_folder_needs_no_store(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(store.export_dir(store.get("colours"), "fp32"), folder)
    images = load_images(data=f"folder:{colours}")
    found = evaluate_on(Predictor.from_folder(folder), images, name="onnx")
    own = evaluate("colours", store=store.root)
    assert np.array_equal(found.metrics.confusion, own.metrics.confusion)


def test_an_exported_folder_is_evaluated_without_torch(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from glora_deploy.evaluation import evaluate\n"
        "from glora_deploy.serving import Predictor\n"
        f"store = {str(store.root)!r}\n"
        "network = Predictor.from_store(store, 'colours')\n"
        "print(evaluate('colours', store=store, network=network).metrics.n_correct)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == N_TEST - N_MISLABELLED


def test_as_json_values_it_can_be_written(store: ArtifactStore) -> None:
    found = evaluate("colours", store=store.root)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["accuracy"] == read["recorded_accuracy"]
    assert (read["task"], read["version"], read["split"]) == ("colours", "v1", "test")
    assert read["images_per_second"] == pytest.approx(N_TEST / read["seconds"])


def test_what_is_missing_is_named(own_store: ArtifactStore) -> None:
    with pytest.raises(NotInStoreError, match="no task 'birds'"):
        evaluate("birds", store=own_store.root)
    with pytest.raises(ValueError, match="split must be one of test, val, train, all, got 'dev'"):
        evaluate("colours", store=own_store.root, split="dev")  # type: ignore[arg-type]
    (weights,) = own_store.backbones.glob("*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BackboneMismatchError, match="the delta was trained on"):
        evaluate("colours", store=own_store.root)
    shutil.rmtree(weights.parent)
    with pytest.raises(StoreError, match="An export with --checkpoint random:0 puts it there"):
        evaluate("colours", store=own_store.root)


def _rename_data(store: ArtifactStore, old: str, new: str) -> None:
    """Let the manifests name other data, which the digest in the adapter leaves out."""
    for path in store.root.glob("colours/*/manifest.json"):
        text = path.read_text("utf-8")
        assert json.dumps(old) in text
        path.write_text(text.replace(json.dumps(old), json.dumps(new)), "utf-8")
