from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from glora_deploy.backbone import build_empty, load_backbone
from glora_deploy.errors import ArtifactError, HubError, StoreError

VIT = "vit_tiny_patch16_224"
NARROW = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}


def narrow(checkpoint: str | Path = "random:0", input_size: int = 32):  # type: ignore[no-untyped-def]
    return load_backbone(VIT, checkpoint=checkpoint, input_size=input_size, model_args=NARROW)


def narrow_state(seed: int = 0, **changes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = timm.create_model(VIT, img_size=32, **{**NARROW, **changes})
    return model.state_dict()


def test_the_classifier_is_no_part_of_a_backbone_and_can_have_any_size() -> None:
    backbone = narrow()
    assert backbone.classifier == ("head",)
    assert not any(name.startswith("head.") for name in backbone.tensors)
    model = backbone.build(7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert not model.training
    for name, tensor in backbone.tensors.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_building_repeats_and_leaves_the_global_generator_alone() -> None:
    backbone = narrow()
    before = torch.random.get_rng_state()
    first, second, other = (backbone.build(5, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first["head.weight"], second["head.weight"])
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_fingerprint_follows_the_weights_and_nothing_else() -> None:
    assert narrow("random:0").fingerprint == narrow("random:0").fingerprint
    assert narrow("random:0").fingerprint != narrow("random:1").fingerprint


def test_local_safetensors_give_their_weights(tmp_path: Path) -> None:
    state = narrow_state()
    save_file(state, tmp_path / "w.safetensors")
    backbone = narrow(tmp_path / "w.safetensors")
    assert backbone.source == "file:w.safetensors"
    assert torch.equal(
        backbone.tensors["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"]
    )


def test_the_position_embedding_is_resampled_to_another_input_size(tmp_path: Path) -> None:
    save_file(narrow_state(), tmp_path / "w.safetensors")
    backbone = narrow(tmp_path / "w.safetensors", input_size=64)
    assert backbone.tensors["pos_embed"].shape == (1, 65, 48)
    assert backbone.preprocessing.size == (64, 64)


def test_google_npz_checkpoints_load(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    block = "Transformer/encoderblock_0"
    arrays = {
        "embedding/kernel": draw(8, 8, 3, 48),
        "embedding/bias": draw(48),
        "cls": draw(1, 1, 48),
        "Transformer/posembed_input/pos_embedding": draw(1, 17, 48),
        "Transformer/encoder_norm/scale": draw(48),
        "Transformer/encoder_norm/bias": draw(48),
    }
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        arrays |= {f"{block}/{norm}/scale": draw(48), f"{block}/{norm}/bias": draw(48)}
    attention = f"{block}/MultiHeadDotProductAttention_1"
    for part in ("query", "key", "value"):
        arrays |= {
            f"{attention}/{part}/kernel": draw(48, 3, 16),
            f"{attention}/{part}/bias": draw(3, 16),
        }
    arrays |= {f"{attention}/out/kernel": draw(3, 16, 48), f"{attention}/out/bias": draw(48)}
    for index, (rows, columns) in enumerate(((48, 192), (192, 48))):
        mlp = f"{block}/MlpBlock_3/Dense_{index}"
        arrays |= {f"{mlp}/kernel": draw(rows, columns), f"{mlp}/bias": draw(columns)}
    np.savez(tmp_path / "w.npz", **arrays)
    backbone = narrow(tmp_path / "w.npz")
    np.testing.assert_array_equal(
        backbone.tensors["blocks.0.mlp.fc1.weight"], arrays[f"{block}/MlpBlock_3/Dense_0/kernel"].T
    )


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(StoreError, match=r"no\.safetensors: the checkpoint must be a file"):
        narrow("no.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pth"])
def test_damaged_checkpoints_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        narrow(tmp_path / name)


def test_weights_of_another_architecture_are_refused_naming_both_sides(tmp_path: Path) -> None:
    save_file(narrow_state(mlp_ratio=2), tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"fc1\.bias is \(96,\), the model's is \(192,\)"):
        narrow(tmp_path / "w.safetensors")


def test_an_unknown_model_is_refused_with_close_names() -> None:
    with pytest.raises(ValueError, match="backbone 'vit_tiny_patch' must be demo-vit or a timm"):
        load_backbone("vit_tiny_patch")


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"cannot be fetched .*--checkpoint") as caught:
        load_backbone(VIT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "model_args", "empty"),
    [
        (VIT, {"depth": 1, "embed_dim": 24, "num_heads": 2}, True),
        ("resnet18", {"layers": [1, 1, 1, 1]}, True),
        # Its constructor makes buffers on the device of its parameters,
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (2,), "num_heads": (2,), "embed_dim": 8},
            False,
        ),
        # and this one's runs the network to see what size comes out.
        ("vit_tiny_r_s16_p8_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}, False),
    ],
)
def test_an_empty_network_filled_with_a_backbone_computes_as_the_backbone_does(
    name: str, model_args: dict[str, Any], empty: bool
) -> None:
    backbone = load_backbone(name, checkpoint="random:0", model_args=model_args)
    whole = backbone.build(3)
    before = torch.random.get_rng_state()
    network = build_empty(backbone.architecture, backbone.model_args, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {parameter.is_meta for parameter in network.parameters()} == {empty}
    network.load_state_dict(whole.state_dict(), strict=True, assign=True)
    images = torch.randn(2, *backbone.input_size)
    with torch.inference_mode():
        assert torch.equal(network(images), whole(images))


def test_what_another_thread_builds_meanwhile_keeps_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = timm.create_model

    def create_in_company(*args: Any, **kwargs: Any) -> torch.nn.Module:
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(torch.nn.Linear, 2, 2).result().weight.is_meta
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_in_company)
    network = build_empty(VIT, NARROW, 3)
    assert all(parameter.is_meta for parameter in network.parameters())


def test_models_that_differ_in_kind_name_their_classifiers() -> None:
    for name, heads in {
        "convnext_atto": ("head.fc",),
        "tf_efficientnet_lite0": ("classifier",),
        "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    }.items():
        assert load_backbone(name, checkpoint="random:0").classifier == heads


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_arguments_that_name_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"model_args must not hold '{name}'"):
        load_backbone(VIT, checkpoint="random:0", model_args={name: "/etc/passwd"})
