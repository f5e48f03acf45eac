from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import from_numpy

from glora_deploy.backbones.load import build_empty
from glora_deploy.data.load import ImageSet, TaskData
from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.errors import (
    ArtifactError,
    DataError,
    GloraDeployError,
    NonFiniteError,
    StoreError,
)
from glora_deploy.merge.formula import merge_into
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import job, pipeline
from glora_deploy.training.config import RunConfig, SearchConfig, TrainConfig
from glora_deploy.training.pipeline import Outcome, run
from glora_deploy.training.run_folder import RunFolder
from glora_deploy.training.setting_error import SettingError
from glora_deploy.training.trainer import Trainer
from stored_tasks import make_backbone
from tasks import make_task, use_small_backbone


@pytest.fixture(autouse=True)
def small_task(monkeypatch: pytest.MonkeyPatch) -> TaskData:
    """A tiny backbone and a task of colours in place of what the names stand for."""
    task = make_task()
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: task)
    use_small_backbone(monkeypatch)
    return task


def make_config(**changes: Any) -> RunConfig:
    lora = changes.get("method") == "lora"
    train = TrainConfig.preset(
        "short",
        epochs=6,
        batch_size=12,
        lr=1e-2,
        ranks=(3,) if lora else (3, 2),
        warmup_epochs=0,
        checkpoint_every=2,
    )
    search = SearchConfig(population=6, generations=2, top_k=2, mutations=3, crossovers=3)
    values = {
        "task": "colours",
        "data": "colours",
        "train": train,
        "search": None if lora else search,
    }
    return RunConfig(**{**values, **changes})


def train(root: Path, **changes: Any) -> list[Outcome]:
    return run(make_config(**changes), root, lambda *progress: None)


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor), name


def answers(artifact: Artifact, store: ArtifactStore, images: ImageSet) -> np.ndarray:
    """What the stored backbone answers with the stored delta merged into it."""
    manifest = artifact.manifest
    folder = store.backbone_path(manifest.backbone.fingerprint)
    frozen = load_file(folder / "model.safetensors")
    assert fingerprint({n: t.numpy() for n, t in frozen.items()}) == manifest.backbone.fingerprint
    tensors = {name: from_numpy(t.copy()) for name, t in artifact.tensors().items()}
    head = {name: t for name, t in tensors.items() if manifest.is_head(name)}
    supports = {name: t for name, t in tensors.items() if name not in head}
    network = build_empty(
        manifest.backbone.name, manifest.backbone.model_args, len(manifest.labels)
    )
    whole = {name: tensor.clone() for name, tensor in {**frozen, **head}.items()}
    network.load_state_dict(whole, strict=True, assign=True)
    merge_into(network, frozen, supports, manifest.layers)
    preprocessing = Preprocessing(**manifest.preprocessing.model_dump())
    x = preprocess_batch((images.image(i) for i in range(len(images))), preprocessing)
    with torch.no_grad():
        return network.eval()(from_numpy(x)).argmax(1).numpy()


def test_a_run_stores_a_delta_that_answers_as_measured(
    tmp_path: Path, small_task: TaskData
) -> None:
    (outcome,) = train(tmp_path / "store")
    store = ArtifactStore.open(tmp_path / "store")
    artifact = store.get("colours")
    assert outcome.artifact.version == artifact.version == "v1"
    assert outcome.test_accuracy > 0.9
    found = answers(artifact, store, small_task.test)
    assert float((found == small_task.test.labels).mean()) == outcome.test_accuracy
    found = answers(artifact, store, small_task.val)
    assert float((found == small_task.val.labels).mean()) == outcome.val_accuracy
    assert artifact.manifest.n_parameters == outcome.n_parameters
    assert store.verify() == []


def test_the_manifest_tells_how_the_delta_came_to_be(tmp_path: Path, small_task: TaskData) -> None:
    (outcome,) = train(tmp_path, seed=3)
    manifest = outcome.artifact.manifest
    training = manifest.training
    assert (training.method, training.schedule, training.seed) == ("glora", "short", 3)
    assert (training.data, training.splits_sha256) == ("colours", small_task.splits_sha256)
    assert (training.epochs, training.device) == (6, "cpu")
    assert training.seconds == pytest.approx(outcome.train_s)
    assert training.versions["torch"] == version("torch")
    assert training.val_accuracy == outcome.val_accuracy
    assert training.test_accuracy == outcome.test_accuracy
    assert training.settings["ranks"] == [3, 2]
    assert training.settings["n_evaluated"] == 18
    assert 0 <= training.settings["search_accuracy"] <= 1
    assert manifest.labels == ("red", "green", "blue")
    assert manifest.backbone.fingerprint == make_backbone().fingerprint
    assert list(manifest.layers) == [
        f"blocks.{i}.{name}"
        for i in (0, 1)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]


@pytest.mark.parametrize("changes", [{}, {"compare_lora": True}, {"retrain": True}])
def test_every_test_image_is_read_once_and_after_all_else(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, small_task: TaskData
) -> None:
    read: list[str] = []

    def watched(images: ImageSet) -> ImageSet:
        def spy(index: int) -> Any:
            read.append(images.ids[index])
            return images.image(index)

        return ImageSet(images.labels, images.ids, spy)

    splits = {name: watched(getattr(small_task, name)) for name in ("train", "val", "test")}
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: replace(small_task, **splits))
    train(tmp_path, **changes)
    n_test = len(small_task.test)
    assert sorted(read[-n_test:]) == sorted(small_task.test.ids)
    assert not set(read[:-n_test]) & set(small_task.test.ids)


def test_the_same_seed_stores_the_same_bits(tmp_path: Path) -> None:
    def tensors(name: str, seed: int) -> dict[str, np.ndarray]:
        (outcome,) = train(tmp_path / name, seed=seed)
        return outcome.artifact.tensors()

    first, second, other = tensors("a", 1), tensors("b", 1), tensors("c", 2)
    assert_same(second, first)
    assert not np.array_equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("stage", "at"),
    [("training", 3), ("search", 7), ("training", 5), ("retraining", 4), ("lora", 1)],
)
def test_a_run_interrupted_at_any_stage_resumes_to_the_same_delta(
    tmp_path: Path, stage: str, at: int
) -> None:
    options: dict[str, Any] = {"retrain": stage == "retraining", "compare_lora": stage == "lora"}
    (expected, *_) = train(tmp_path / "whole", **(options | {"compare_lora": False}))

    def interrupt(name: str, done: int, total: int, note: str) -> None:
        if (name, done) == (stage, at):
            raise KeyboardInterrupt

    root = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(make_config(**options), root, interrupt)
    assert ArtifactStore.open(root).tasks() == []
    assert (root / ".runs" / "colours").is_dir()
    (found, *_) = train(root, **options)
    assert not (root / ".runs" / "colours").exists()
    assert_same(found.artifact.tensors(), expected.artifact.tensors())
    assert found.val_accuracy == expected.val_accuracy


def ruin_the_last_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the epochs that follow the search the classifier answers with one class."""
    original = Trainer.train

    def train(self: Trainer, draw: Any, until: int | None = None) -> None:
        original(self, draw, until)
        if until is None:
            for name, parameter in self._parameters.items():
                if name.startswith("head."):
                    parameter.data.zero_()

    monkeypatch.setattr(Trainer, "train", train)


def test_of_the_searched_weights_and_the_last_the_better_are_stored(
    tmp_path: Path, small_task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (last,) = train(tmp_path / "last")
    settings = last.artifact.manifest.training.settings
    assert last.search_accuracy == settings["search_accuracy"]
    assert (last.as_searched, settings["weights"]) == (False, "last epoch")
    assert last.val_accuracy >= settings["search_accuracy"]
    ruin_the_last_epochs(monkeypatch)
    (outcome,) = train(tmp_path / "store")
    store = ArtifactStore.open(tmp_path / "store")
    settings = outcome.artifact.manifest.training.settings
    assert (outcome.as_searched, settings["weights"]) == (True, "as searched")
    assert outcome.val_accuracy == outcome.search_accuracy == last.search_accuracy
    found = answers(outcome.artifact, store, small_task.val)
    assert float((found == small_task.val.labels).mean()) == outcome.val_accuracy
    assert outcome.val_accuracy > 0.5


def test_the_searched_weights_outlast_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruin_the_last_epochs(monkeypatch)
    (expected,) = train(tmp_path / "whole")

    def interrupt(name: str, done: int, total: int, note: str) -> None:
        if (name, done) == ("training", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(), tmp_path / "broken", interrupt)
    (found,) = train(tmp_path / "broken")
    assert found.as_searched
    assert found.val_accuracy == expected.val_accuracy
    assert_same(found.artifact.tensors(), expected.artifact.tensors())


def test_the_parameter_limit_is_kept_and_the_count_exact(tmp_path: Path) -> None:
    search = SearchConfig.preset("short", population=6, generations=2, max_parameters=500)
    (outcome,) = train(tmp_path, search=search)
    tensors = outcome.artifact.tensors()
    assert outcome.n_parameters <= 500
    stored = sum(t.size for name, t in tensors.items() if not name.startswith("head."))
    assert stored == outcome.n_parameters


def test_lora_adapts_the_query_key_value_layers_and_nothing_else(tmp_path: Path) -> None:
    (outcome,) = train(tmp_path, method="lora")
    assert outcome.test_accuracy > 0.9
    manifest = outcome.artifact.manifest
    assert manifest.training.method == "lora"
    assert {layer: str(r.layer_paths()) for layer, r in manifest.layers.items()} == dict.fromkeys(
        ("blocks.0.attn.qkv", "blocks.1.attn.qkv"), "A=none B=lora:3 C=none D=none E=none"
    )
    assert outcome.n_parameters == 2 * 3 * (144 + 48)


def test_compared_lora_is_another_version_that_does_not_answer(tmp_path: Path) -> None:
    glora, lora = train(tmp_path, compare_lora=True)
    store = ArtifactStore.open(tmp_path)
    assert (glora.method, lora.method) == ("glora", "lora")
    assert store.versions("colours") == ["v1", "v2"]
    assert store.get("colours").manifest.training.method == "glora"
    assert store.get("colours", "v2").manifest.training.test_accuracy == lora.test_accuracy


def test_retraining_keeps_the_subnet_and_trains_it_on_both_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Spy(Trainer):
        def __init__(self, adapted: Any, images: Any, *args: Any, **options: Any) -> None:
            sizes.append(len(images))
            super().__init__(adapted, images, *args, **options)

    monkeypatch.setattr(job, "Trainer", Spy)
    (plain,) = train(tmp_path / "plain")
    (again,) = train(tmp_path / "again", retrain=True)
    assert sizes == [36, 36, 36 + 18]
    assert again.artifact.manifest.subnet() == plain.artifact.manifest.subnet()
    assert again.val_accuracy == plain.val_accuracy
    heads = (each.artifact.tensors()["head.weight"] for each in (plain, again))
    assert not np.array_equal(*heads)
    assert again.artifact.manifest.training.settings["retrain"] is True


def test_versions_are_counted_or_named(tmp_path: Path) -> None:
    assert train(tmp_path)[0].artifact.version == "v1"
    assert train(tmp_path, version="second")[0].artifact.version == "second"
    with pytest.raises(StoreError, match=r"colours/second: the version must be new, it exists"):
        train(tmp_path, version="second")
    assert ArtifactStore.open(tmp_path).current("colours") == "second"


def spy_on_epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every epoch that is trained from now on."""
    trained: list[int] = []
    train_epoch = Trainer._train_epoch

    def spy(self: Trainer, *args: Any) -> tuple[float, float]:
        trained.append(self._epoch)
        return train_epoch(self, *args)

    monkeypatch.setattr(Trainer, "_train_epoch", spy)
    return trained


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_store_that_fails_at_the_end_loses_no_epoch(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(tmp_path / "whole", compare_lora=True)
    root, put, calls = tmp_path / "full", ArtifactStore.put, []

    def full(self: ArtifactStore, *args: Any, **options: Any) -> Artifact:
        calls.append(args)
        if len(calls) == fails_at:
            raise StoreError(f"{self.root}: no space left to write it")
        return put(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "put", full)
        with pytest.raises(StoreError, match=r"no space left .* stores it without training again"):
            train(root, compare_lora=True)
    trained = spy_on_epochs(monkeypatch)
    found = train(root, compare_lora=True)
    assert trained == []
    assert [each.artifact.version for each in found] == ["v1", "v2"]
    assert ArtifactStore.open(root).versions("colours") == ["v1", "v2"]
    # How many epochs LoRA gets follows from measured times, so only GLoRA's bits repeat.
    assert_same(found[0].artifact.tensors(), expected[0].artifact.tensors())
    assert not (root / ".runs" / "colours").exists()


def test_a_version_that_was_taken_meanwhile_costs_another_name_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_the_name(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("training", 6):
            (tmp_path / "colours/release").mkdir(parents=True)
            (tmp_path / "colours/release/manifest.json").write_text("{}")

    with pytest.raises(StoreError, match=r"release: the version must be new.* another --version"):
        run(make_config(version="release"), tmp_path, take_the_name)
    trained = spy_on_epochs(monkeypatch)
    (outcome,) = train(tmp_path, version="release-2")
    assert outcome.artifact.version == "release-2"
    assert trained == []


def test_a_run_cut_off_between_storing_and_its_end_does_not_store_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, version="a", method="lora")
    (outcome,) = train(tmp_path, version="a", method="lora")
    assert outcome.artifact.version == "a"
    assert ArtifactStore.open(tmp_path).versions("colours") == ["a"]


def test_another_request_does_not_cost_the_epochs_of_an_interrupted_one(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("training", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(), tmp_path, interrupt)
    with pytest.raises(StoreError, match="with 5 epochs done, has seed 0, this one asks for 1"):
        train(tmp_path, seed=1)
    told: list[str] = []
    run(make_config(seed=1, restart=True), tmp_path, lambda *progress: None, told.append)
    assert "discarded an unfinished run: 5 epochs" in told


def test_a_divergence_that_would_repeat_says_how_to_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = Trainer._train_epoch

    def diverge(self: Trainer, *args: Any) -> tuple[float, float]:
        if self._epoch == 4:
            raise NonFiniteError("blocks.0.attn.qkv: the merged weight must be finite")
        return train_epoch(self, *args)

    monkeypatch.setattr(Trainer, "_train_epoch", diverge)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path)
    assert str(caught.value) == (
        "blocks.0.attn.qkv: the merged weight must be finite. The training has diverged: lower "
        "--lr, and add --restart."
    )


def test_weights_that_are_not_finite_are_no_epoch_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def overflow(self: torch.optim.AdamW) -> None:  # the loss before it was finite still
        step(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    whole_split = replace(make_config(method="lora").train, batch_size=36, checkpoint_every=1)
    with pytest.raises(NonFiniteError, match=r"not after epoch 1\. .* diverged: lower --lr\.$"):
        train(tmp_path, method="lora", train=whole_split)
    assert not (tmp_path / ".runs/colours").exists()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"backbone": "nonsense_vit"}, "'nonsense_vit' must be demo-vit or a timm model"),
        ({"data": "foo:bar"}, "data must be folder:PATH, lists:PATH, vtab:PATH or the name"),
        ({"data": "folder:.?split=train=nix,val=0.2,test=nix2"}, "nix"),
        ({"include": ("",)}, "include pattern '' must match"),
    ],
)
def test_an_unfinished_run_does_not_hide_what_is_wrong_with_a_request(
    tmp_path: Path, changes: dict[str, Any], refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("lora", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(method="lora"), tmp_path, interrupt)
    monkeypatch.undo()  # the real tasks and backbones
    monkeypatch.chdir(tmp_path)
    if include := changes.get("include"):
        changes = {"train": replace(make_config(method="lora").train, include=include)}
    with pytest.raises((DataError, SettingError), match=refusal):
        train(tmp_path, method="lora", **{"data": "digits", **changes})
    assert RunFolder(tmp_path, "colours").epochs == 5


def test_other_images_are_named_as_such_where_an_unfinished_run_had_these(
    tmp_path: Path, small_task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("lora", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(method="lora"), tmp_path, interrupt)
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task(n_train=30))
    with pytest.raises(StoreError) as caught:
        train(tmp_path, method="lora")
    assert str(caught.value) == (
        f"{tmp_path}/.runs/colours: an unfinished run of this task, with 5 epochs done, cannot go "
        "on: the images have changed since. Put them back, or give --restart to discard it."
    )


def test_a_subnet_without_supports_is_not_stored_without_a_word(tmp_path: Path) -> None:
    tight = SearchConfig(
        population=2, generations=0, top_k=2, mutations=1, crossovers=1, max_parameters=0
    )
    told: list[str] = []
    config = make_config(search=tight, data="digits")
    (outcome,) = run(config, tmp_path, lambda *progress: None, told.append)
    assert outcome.n_parameters == 0
    note = "the best subnet with at most 0 parameters adapts no layer: only the classifier is"
    assert told == [f"{note} trained"]


@pytest.mark.parametrize("place", ["file", "file/store", "locked", "locked/new/store"])
def test_a_store_that_cannot_be_written_is_refused_before_the_data_is_read(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked").mkdir()
    access = os.access
    locked = tmp_path / "locked"  # permissions do not bind root, who may run this
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: pytest.fail("data was read"))
    with pytest.raises(StoreError) as caught:
        train(tmp_path / place)
    rule = {
        "file": f"folder, {tmp_path}/file is none",
        "lock": f"folder that can be written to, {locked} cannot. Give another --store, or change "
        "its permissions.",
    }[place[:4]]
    assert str(caught.value) == f"{tmp_path / place}: the store must be a {rule}"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("red", "g" * 201, "blue"), r"colours: the name of class 1 must be 1 to 200 .*Rename its"),
        (("red", "green", "b\nlue"), r"name of class 2 must be .* on one line, got 'b\\nlue'"),
        (("red", "", "blue"), r"the name of class 1 must be 1 to 200 characters"),
        (("re\udcffd", "green", "blue"), r"names of classes and images must be UTF-8, got 're"),
    ],
)
def test_a_class_that_cannot_be_stored_is_refused_before_an_image_is_read(
    tmp_path: Path,
    classes: tuple[str, ...],
    message: str,
    small_task: TaskData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unread = replace(small_task.train, read=lambda index: pytest.fail("an image was read"))
    task = replace(small_task, classes=classes, train=unread)
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: task)
    with pytest.raises(DataError, match=message):
        train(tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("data", ["folder:a\nb", "folder:\udcff", f"folder:{'a' * 1000}"])
def test_a_data_spec_that_cannot_be_stored_is_refused_before_an_epoch(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = spy_on_epochs(monkeypatch)
    with pytest.raises(SettingError, match=r"data must be .*UTF-8") as caught:
        train(tmp_path / "store", data=data)
    assert caught.value.settings == ("data",)
    assert "\n" not in str(caught.value)
    assert trained == []
    assert not (tmp_path / "store").exists()


def test_whatever_else_the_format_refuses_is_refused_before_an_epoch(
    tmp_path: Path, small_task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = spy_on_epochs(monkeypatch)
    # Each name is allowed, and all of them together are more than a manifest may hold.
    names = tuple(f"{i:06d}{'x' * 194}" for i in range(90_000))
    monkeypatch.setattr(
        pipeline, "load_task", lambda spec, seed: replace(small_task, classes=names)
    )
    with pytest.raises(ArtifactError, match="must have at most 16777216 bytes"):
        train(tmp_path / "store", method="lora")
    assert trained == []
    assert not (tmp_path / "store").exists()


def test_a_damaged_backbone_in_the_store_is_refused_before_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outcome,) = train(tmp_path, method="lora")
    digest = outcome.artifact.manifest.backbone.fingerprint
    folder = ArtifactStore.open(tmp_path).backbone_path(digest)
    (folder / "config.json").write_bytes(b"[]\n")
    trained = spy_on_epochs(monkeypatch)
    with pytest.raises(ArtifactError, match=r"config\.json: sha256 is .* Restore it, or remove"):
        train(tmp_path, method="lora")
    assert trained == []
    assert ArtifactStore.open(tmp_path).versions("colours") == ["v1"]


def test_more_images_per_step_than_there_are_is_refused_and_the_schedules_own_is_cut(
    tmp_path: Path,
) -> None:
    big = replace(make_config(method="lora").train, batch_size=37)
    with pytest.raises(SettingError, match=r"batch_size must be at most 36, .*got 37") as caught:
        train(tmp_path, method="lora", train=big)
    assert caught.value.settings == ("batch_size",)
    own = TrainConfig.preset("paper", epochs=1, ranks=(2,))
    (outcome,) = train(tmp_path, method="lora", train=own)
    assert outcome.artifact.manifest.training.settings["batch_size"] == 36


def test_a_lora_run_records_what_it_did_and_nothing_else(tmp_path: Path) -> None:
    train_config = replace(make_config(method="lora").train, include=("*.attn.*",))
    (outcome,) = train(tmp_path, method="lora", train=train_config)
    manifest = outcome.artifact.manifest
    assert {layer.rpartition(".")[2] for layer in manifest.layers} == {"qkv", "proj"}
    settings = manifest.training.settings
    assert (settings["ranks"], settings["kinds"]) == ([3], ["linear"])
    assert settings["include"] == ["*.attn.*"]
    assert not {"search", "retrain", "supernet_share"} & settings.keys()


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "demo-vit is a toy that sees 32x32 pixels: what it reaches on your images says"),
        (
            {"data": "digits", "input_size": (64, 72)},
            "an input of 64x72 has 4 times the pixels of the backbone's own 32x32: every step",
        ),
    ],
)
def test_what_a_user_should_know_is_said(
    tmp_path: Path, changes: dict[str, Any], note: str
) -> None:
    told: list[str] = []
    run(make_config(method="lora", **changes), tmp_path, lambda *progress: None, told.append)
    (line,) = told
    assert line.startswith(note)
    told.clear()
    small = make_config(method="lora", data="digits")
    run(small, tmp_path, lambda *progress: None, told.append)
    assert told == []


@pytest.mark.parametrize(
    "changes", [{"task": "../evil"}, {"version": "a b"}, {"device": "tpu"}, {"task": ""}]
)
def test_a_bad_name_is_refused_before_the_store_is_made(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises((GloraDeployError, ValueError)):
        train(tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()


def test_progress_is_told_stage_by_stage(tmp_path: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def tell(stage: str, done: int, total: int, note: str) -> None:
        stages[stage] = (done, total)

    run(make_config(compare_lora=True), tmp_path, tell)
    assert list(stages) == ["read train", "read val", "training", "search", "lora", "test"]
    assert stages["read train"] == (36, 36)
    assert stages["training"] == (6, 6)
    assert stages["search"] == (18, 18)
    assert all(done == total for done, total in stages.values())
