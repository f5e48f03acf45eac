"""What an export is to whoever loads its folder, and what it must not be taken from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from json_changes import altered, changes, leaves
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config

from glora_deploy.backbones.load import load_backbone, load_timm_folder
from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import ArtifactError, GloraDeployError
from glora_deploy.export import timm_folder
from glora_deploy.export.parity_check.torch_networks import _lies_in, exported_network, torch_logits
from glora_deploy.export.pipeline import ExportConfig, export, prove_again
from glora_deploy.export.stored_backbone import backbone_of
from glora_deploy.export.timm_folder import config_bytes
from glora_deploy.store.artifact import MANIFEST, Artifact
from glora_deploy.store.store import ArtifactStore
from stored_tasks import make_backbone, make_overflowing_backbone, make_stored_task

Made = tuple[ArtifactStore, Artifact, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store, its artifact and the artifact's export; not to be changed."""
    store, artifact = make_stored_task(tmp_path_factory.mktemp("made"))
    return store, artifact, export(store, artifact, ExportConfig(n_images=1)).folder


@pytest.fixture
def own(made: Made, tmp_path: Path) -> Made:
    """A copy that a test may change."""
    store, artifact, _ = made
    shutil.copytree(store.root, tmp_path / "own")
    own = ArtifactStore.open(tmp_path / "own")
    return own, own.get(artifact.task), own.export_dir(own.get(artifact.task), "fp32")


def images_like(artifact: Artifact) -> np.ndarray:
    size = artifact.manifest.backbone.input_size
    return np.random.default_rng(0).standard_normal((2, *size), dtype=np.float32)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_text(json.dumps(fields))


def older(folder: Path) -> Path:
    """The config.json of a backbone, as an older release put it there: not sealed."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, weights)
    edit(folder / "config.json", lambda fields: fields["pretrained_cfg"].pop("fixed_input_size"))
    return folder / "config.json"


# Loaded as a user does


@pytest.mark.parametrize(
    ("name", "model_args", "is_mapped"),
    [
        ("vit_tiny_patch16_224", {}, True),
        ("test_convnext", {}, True),
        # Its constructor computes with its parameters.
        ("vit_tiny_r_s16_p8_224", {"depth": 1}, False),
    ],
)
def test_the_compared_network_is_the_one_that_timm_loads(
    tmp_path: Path, name: str, model_args: dict[str, Any], is_mapped: bool
) -> None:
    backbone = make_backbone(name, **model_args)
    store, artifact = make_stored_task(tmp_path, backbone=backbone)
    folder = export(store, artifact, ExportConfig(n_images=1)).folder
    images = images_like(artifact)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = exported_network(artifact.manifest, folder)
    assert np.array_equal(torch_logits(ours)(images), torch_logits(theirs)(images))
    assert str(ours) == str(theirs)
    loaded = load_timm_folder(folder)
    assert loaded.labels == artifact.manifest.labels
    assert loaded.preprocessing == Preprocessing.from_timm(resolve_model_data_config(theirs))
    # Each layer gives its pages back once it has run.
    assert any(module._forward_hooks for module in ours.modules()) == is_mapped
    # Parameters that cost no memory of their own: writing the file shows in them.
    with (folder / "model.safetensors").open("rb+") as file:
        file.seek(-4, 2)
        file.write(np.float32(123).tobytes())
    last = [p for p in ours.state_dict().values() if (p == 123).any()]
    assert bool(last) == is_mapped


def test_a_weight_that_timm_changed_stays_as_timm_left_it(made: Made) -> None:
    _, _, folder = made
    path = folder / "model.safetensors"
    model = load_timm_folder(folder).model
    assert _lies_in(model, path)
    with torch.no_grad():
        model.state_dict(keep_vars=True)["pos_embed"].add_(0)
    assert not _lies_in(model, path)
    model = load_timm_folder(folder).model
    model.load_state_dict({"head.bias": torch.zeros(5)}, strict=False, assign=True)
    assert not _lies_in(model, path)


def test_the_files_may_go_while_the_network_lives(own: Made) -> None:
    _, artifact, folder = own
    model = exported_network(artifact.manifest, folder)
    images = images_like(artifact)
    before = torch_logits(model)(images)
    shutil.rmtree(folder)
    assert np.array_equal(torch_logits(model)(images), before)


CHANGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mean must be (0.5, 0.5, 0.5) by the manifest, timm takes it as (0.9, 0.5, 0.5)": lambda c: c[
        "pretrained_cfg"
    ]["mean"].__setitem__(0, 0.9),
    "crop_pct must be ": lambda c: c["pretrained_cfg"].pop("crop_pct"),
    "interpolation must be ": lambda c: c["pretrained_cfg"].update(interpolation="nearest"),
    "crop_mode must be ": lambda c: c["pretrained_cfg"].update(crop_mode="border"),
    "size must be (32, 32) by": lambda c: c["pretrained_cfg"].update(input_size=[3, 48, 48]),
    "labels must be ": lambda c: c["label_names"].reverse(),
}


@pytest.mark.parametrize("message", CHANGED)
def test_what_timm_makes_of_images_and_classes_must_be_the_manifests(
    own: Made, message: str
) -> None:
    _, artifact, folder = own
    edit(folder / "config.json", CHANGED[message])
    with pytest.raises(ArtifactError) as caught:
        exported_network(artifact.manifest, folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {message}")
    assert str(caught.value).endswith("Export it again.")


@pytest.mark.parametrize("text", ["[]", "null", "{}", "", '{"architecture": 1}'])
def test_a_configuration_that_timm_cannot_read_gives_one_line(own: Made, text: str) -> None:
    _, artifact, folder = own
    (folder / "config.json").write_text(text)
    with pytest.raises(ArtifactError) as caught:
        exported_network(artifact.manifest, folder)
    assert str(caught.value).startswith(f"{folder}: timm cannot load it (")
    assert "\n" not in str(caught.value)


def test_a_part_that_timm_leaves_without_weights_is_named(own: Made) -> None:
    _, artifact, folder = own
    # timm then discards the classifier and keeps its random numbers.
    edit(folder / "config.json", lambda c: c["model_args"].update(num_classes=6))
    with pytest.raises(ArtifactError, match=r"timm must load head\.weight from it, it does not"):
        exported_network(artifact.manifest, folder)


def test_a_configuration_of_another_network_fails_parity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_more_heads(*args: Any, **options: Any) -> dict[str, Any]:
        config = right(*args, **options)
        config["model_args"]["num_heads"] = 4
        return config

    right = timm_folder.timm_config
    monkeypatch.setattr(timm_folder, "timm_config", with_more_heads)
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(n_images=2))
    assert {(s.stage, s.outcome) for s in done.report.steps if s.inputs == done.report.data} == {
        ("supernet-fp32", "pass"),
        ("merged-fp32", "fail"),
    }
    assert not done.record.usable


def test_a_network_that_is_not_run_is_loaded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another_mean(*args: Any, **options: Any) -> dict[str, Any]:
        config = right(*args, **options)
        config["pretrained_cfg"]["mean"] = [0.25, 0.5, 0.5]
        return config

    right = timm_folder.timm_config
    monkeypatch.setattr(timm_folder, "timm_config", with_another_mean)
    backbone = make_overflowing_backbone()
    store, artifact = make_stored_task(tmp_path, backbone=backbone, kinds=["linear"])
    with pytest.raises(ArtifactError, match="timm takes it as"):
        export(store, artifact, ExportConfig(formats=("onnx",), precision="fp16", n_images=1))


@pytest.mark.parametrize("is_older", [False, True])
def test_an_input_size_that_only_the_architecture_knows_reaches_the_user(
    tmp_path: Path, is_older: bool
) -> None:
    # Built by name it takes 160 x 160; by its constructor, 224 x 224.
    backbone = load_backbone("test_vit", checkpoint="random:0")
    assert backbone.model_args == {}
    store, artifact = make_stored_task(tmp_path, backbone=backbone, kinds=("linear",))
    if is_older:
        older(backbone_of(store, artifact.manifest))
    done = export(store, artifact, ExportConfig(n_images=1))
    done.report.require_passed()
    model = timm.create_model(f"local-dir:{done.folder}", pretrained=True)
    assert model.state_dict()["pos_embed"].shape == backbone.tensors["pos_embed"].shape


# Taken from the manifest


def config_or_refusal(artifact: Artifact, backbone: Path) -> bytes | None:
    """The config.json that an export would ship; None if it is refused, in one line."""
    try:
        return config_bytes(artifact.manifest, backbone)
    except ArtifactError as error:
        return None if str(error).startswith(f"{backbone / 'config.json'}: ") else b""


def test_no_change_of_the_backbones_configuration_reaches_what_is_shipped(own: Made) -> None:
    store, artifact, folder = own
    backbone = backbone_of(store, artifact.manifest)
    path = older(backbone)
    shipped = (folder / "config.json").read_bytes()
    n_changes = 0
    for what, data in changes(path.read_bytes()):
        path.write_bytes(data)
        found = config_or_refusal(artifact, backbone)
        # The license is no part of what is computed; sealed, it cannot be altered alone either.
        is_license = what == "altered pretrained_cfg.license"
        assert found in (None, shipped) or is_license, what
        n_changes += 1
    assert n_changes >= 35


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"num_heads": 3', b'"num_heads": 4'), (b"0.5", b"0.9"), (b"32", b"48")],
)
def test_an_altered_configuration_gives_the_same_folder_byte_for_byte(
    own: Made, old: bytes, new: bytes
) -> None:
    store, artifact, folder = own
    path = older(backbone_of(store, artifact.manifest))
    before = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    shutil.rmtree(folder)
    export(store, artifact, ExportConfig(n_images=1)).report.require_passed()
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_sealed_configuration_that_was_altered_stops_the_export(own: Made) -> None:
    store, artifact, folder = own
    path = backbone_of(store, artifact.manifest) / "config.json"
    path.write_bytes(path.read_bytes().replace(b'"num_heads": 3', b'"num_heads": 4'))
    shutil.rmtree(folder)
    with pytest.raises(ArtifactError, match=r"config\.json: sha256 is .* in model\.safetensors"):
        export(store, artifact, ExportConfig(n_images=1))
    assert not folder.exists()
    shutil.rmtree(path.parent)
    backbone = make_backbone()
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, tensors, backbone.config())
    export(store, artifact, ExportConfig(n_images=1)).report.require_passed()


def test_two_tasks_may_use_one_backbone_at_two_sizes(tmp_path: Path) -> None:
    backbone = make_backbone("resnet10t", input_size=64)
    store, _ = make_stored_task(tmp_path, "large", backbone=backbone)
    images = replace(backbone.preprocessing, size=(48, 48), mean=(0.25, 0.5, 0.75))
    _, small = make_stored_task(tmp_path, "small", backbone=replace(backbone, preprocessing=images))
    done = export(store, small, ExportConfig(n_images=1))
    done.report.require_passed()
    config = json.loads((done.folder / "config.json").read_bytes())["pretrained_cfg"]
    assert (config["input_size"], config["mean"]) == ([3, 48, 48], [0.25, 0.5, 0.75])
    assert store.verify() == []


# The manifest, altered


def test_every_altered_value_of_a_manifest_stops_verify_and_export(own: Made) -> None:
    store, artifact, folder = own
    path = artifact.path / MANIFEST
    stated = json.loads(path.read_bytes())
    first = next(iter(stated["layers"]))  # stands for the other layers
    ways = [w for w in leaves(stated) if w[0] != "layers" or w[1] == first]
    ways.remove(("training", "data"))
    for way in ways:
        path.write_text(json.dumps(altered(stated, way)))
        assert store.verify(), way
        for act in (export, prove_again):
            with pytest.raises(GloraDeployError) as caught:
                act(store, store.get("pets", "v1"), ExportConfig(n_images=1))
            assert "\n" not in str(caught.value), way
    assert len(ways) >= 40
    path.write_text(json.dumps(stated))
    assert store.verify() == []
    assert folder.exists()


def test_an_altered_manifest_is_not_made_current(own: Made) -> None:
    store, artifact, _ = own
    path = artifact.path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"num_heads": 3', b'"num_heads": 4'))
    with pytest.raises(ArtifactError, match=r"manifest\.json: what it says has digest"):
        store.set_current("pets", "v1")


def test_loading_leaves_the_global_generator_as_it_was(made: Made) -> None:
    _, _, folder = made
    before = torch.random.get_rng_state()
    load_timm_folder(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
