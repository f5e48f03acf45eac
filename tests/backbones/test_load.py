from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from glora_deploy.backbones.checkpoint_name import require_recordable
from glora_deploy.backbones.load import build_empty, load_backbone, outline
from glora_deploy.errors import ArtifactError, HubError, StoreError
from glora_deploy.store.manifest_fields import BackboneRecord, PreprocessingRecord

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


def test_a_misspelt_model_is_refused_with_close_names() -> None:
    with pytest.raises(ValueError, match=r"Close: vit_small_patch16_224, .*\.$"):
        load_backbone("vit_smal_patch16_224.augreg_in21k")


@pytest.mark.parametrize("tag", ["", ".augreg_in21k"])
def test_an_unknown_model_is_refused_with_close_names(tag: str) -> None:
    rule = rf"^backbone 'vit_tiny_patch{tag}' must be demo-vit or a timm model\. Close: (.*)\.$"
    with pytest.raises(ValueError, match=rule) as caught:
        load_backbone(f"vit_tiny_patch{tag}")
    named = re.search(rule, str(caught.value))
    assert named is not None
    close = named[1].split(", ")
    assert len({*close}) == 3
    assert all("vit_tiny_patch" in name for name in close)
    assert {*close} <= {*timm.list_models()}


def test_a_name_like_no_other_is_refused_with_where_to_look() -> None:
    with pytest.raises(ValueError, match=r"a timm model\. timm\.list_models\(\) lists them\.$"):
        load_backbone("nothing_like_it")


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


def refused_configurations() -> Iterator[tuple[str, str]]:
    """Every pretrained configuration of timm that is refused, and why; no network is built."""
    for name in timm.list_pretrained():
        try:
            plan = outline(name)
        except ValueError as error:
            yield name, str(error)
            continue
        PreprocessingRecord(**asdict(plan.preprocessing))
        BackboneRecord(
            name=plan.architecture.partition(".")[0],
            model_args=dict(plan.model_args),
            source=f"timm:{name}",
            fingerprint="ab" * 32,
            classifier=plan.classifier,
            input_size=(3, *plan.preprocessing.size),
        )


def test_every_pretrained_configuration_of_timm_is_taken_but_those_without_a_classifier() -> None:
    refused = dict(refused_configurations())
    without = [n for n in timm.list_pretrained() if not timm.get_pretrained_cfg(n).classifier]  # type: ignore[union-attr]
    assert sorted(refused) == sorted(without)
    # Encoders of language models; timm has a model with a classifier around each.
    assert {name.partition(".")[0] for name in refused} == {
        *(f"qwen3_vit_{size}_enc" for size in ("88m", "306m", "416m")),
        "deepseek_vit_412m_enc",
    }
    for name, reason in refused.items():
        assert reason == (
            f"backbone {name!r} must have a classifier, timm's is an encoder without one. "
            f"Use {name.replace('_enc', '')}."
        )


def test_an_encoder_without_a_classifier_is_refused_with_the_model_around_it() -> None:
    with pytest.raises(ValueError, match=r"must have a classifier.* Use qwen3_vit_88m\.$"):
        load_backbone("qwen3_vit_88m_enc", checkpoint="random:0")


def test_a_crop_larger_than_the_image_is_taken_over() -> None:
    assert outline("volo_d5_512").preprocessing.crop_pct == 1.15


@pytest.mark.parametrize("name", ["demo-vit", "vit_tiny_patch16_224", "convnext_atto", "resnet18"])
@pytest.mark.parametrize("size", [None, 64, (64, 96)])
def test_an_outline_says_what_the_loaded_backbone_will_be(name: str, size: Any) -> None:
    plan = outline(name, input_size=size)
    backbone = load_backbone(name, checkpoint="random:0", input_size=size)
    assert plan.architecture == backbone.architecture
    assert plan.model_args == backbone.model_args
    assert plan.classifier == backbone.classifier
    assert plan.preprocessing == backbone.preprocessing
    assert plan.build_empty(3).state_dict().keys() == backbone.build(3).state_dict().keys()


def test_height_and_width_of_the_input_may_differ(tmp_path: Path) -> None:
    save_file(narrow_state(), tmp_path / "w.safetensors")
    backbone = load_backbone(
        VIT, checkpoint=tmp_path / "w.safetensors", input_size=(40, 64), model_args=NARROW
    )
    assert backbone.tensors["pos_embed"].shape == (1, 1 + 5 * 8, 48)
    assert backbone.input_size == (3, 40, 64)
    assert backbone.record().model_args["img_size"] == [40, 64]
    assert backbone.build(3)(torch.zeros(2, 3, 40, 64)).shape == (2, 3)
    # A square stays one number, as in every manifest there is.
    assert narrow(input_size=64).record().model_args["img_size"] == 64


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("demo-vit", 1, r"'demo-vit' must take the input size, it cannot take 1x1 .*own is 32x32"),
        ("convnext_atto", (3, 200), "it cannot take 3x200"),
        ("nest_tiny", (224, 320), "Model only handles square inputs"),
        ("mvitv2_tiny", (224, 320), "timm cannot build it with .*AssertionError"),
        ("gcvit_xxtiny", 1, "it cannot take 1x1 .*division by zero"),
        ("demo-vit", 20_000, "each side of the input must have 1 to 4096 pixels, got 20000x20000"),
        ("demo-vit", (0, 32), "each side of the input must have 1 to 4096 pixels, got 0x32"),
    ],
)
def test_an_input_size_that_the_network_cannot_take_is_refused_before_its_weights_are_read(
    name: str, size: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(name, checkpoint="missing.safetensors", input_size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "checkpoint",
    ["random:", "random:abc", "random:-1", "random:1.5", f"random:{2**64}", "random:\u0661"],
)
def test_a_seed_that_is_none_is_refused_in_our_own_words(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="checkpoint random:SEED must have a whole number from 0"):
        load_backbone(VIT, checkpoint=checkpoint)
    require_recordable(f"random:{2**64 - 1}")


@pytest.mark.parametrize("name", ["a\nb.npz", "a\\b.npz", "a\udcff.npz", "a" * 256])
def test_a_checkpoint_whose_name_a_manifest_cannot_hold_is_refused_before_it_is_read(
    name: str,
) -> None:
    with pytest.raises(ValueError, match="the name of a checkpoint file must be UTF-8 text"):
        load_backbone(VIT, checkpoint=f"weights/{name}")


def test_weights_that_timm_does_not_have_are_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="no weights 'nix' of vit_tiny_patch16_224"):
        load_backbone("vit_tiny_patch16_224.nix", checkpoint="random:0")
