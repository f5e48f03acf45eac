"""PEFT adapters that cannot be imported, each refused by name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoHaConfig, get_peft_model

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, StoreError
from peft_adapters import (
    FITTING,
    N_CLASSES,
    PEFT_WARNINGS,
    QKV,
    imported_from,
    saved,
    write_adapter,
)

pytestmark = PEFT_WARNINGS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA or GLORA, got LOHA: its update is not"),
        ({"peft_type": "IA3"}, "got IA3"),
        ({"peft_type": 3}, "peft_type: must be a valid string, got 3"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the backbone itself. Save the"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"use_bdlora": {"x": 1}}, "use_bdlora must not be set, got {'x': 1}"),
        ({"layer_replication": [[0, 1]]}, "layer_replication must not be set"),
        ({"a_new_option": True}, "a_new_option must not be set, got True"),
        ({"lora_alpha": "much"}, "lora_alpha: "),
    ],
)
def test_what_would_change_the_weights_otherwise_is_refused_by_name(
    backbone: Backbone, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    write_adapter(tmp_path, FITTING, **config)
    with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
        imported_from(tmp_path, backbone)
    assert "adapter_config.json: " in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"blocks.7.attn.qkv.lora_A.weight": (2, 48)},
            "blocks.7.attn.qkv (lora_A) must be a layer of the backbone, vit_tiny_patch16_224 has",
        ),
        ({"vit.pooler.dense.lora_A.weight": (2, 48)}, "vit.pooler.dense (lora_A) must be a layer"),
        ({"cls_token": (1, 1, 48)}, "the network (cls_token) must be a layer of the backbone"),
        (
            {f"{QKV}.lora_A.weight": (2, 40), f"{QKV}.lora_B.weight": (144, 2)},
            f"{QKV}: B_u must have shape (2, 48) to fit the backbone's (144, 48), got (2, 40)",
        ),
        (
            {f"{QKV}.lora_A.weight": (2, 48), f"{QKV}.lora_B.weight": (48, 2)},
            f"{QKV}: B_d must have shape (144, 2) to fit the backbone's (144, 48), got (48, 2)",
        ),
        (
            {"vit.layers.0.attention.q_proj.lora_A.weight": (2, 48)}
            | {"vit.layers.0.attention.q_proj.lora_B.weight": (40, 2)},
            f"{QKV}: B_d must have shape (48, 2) to fit the backbone's (144, 48), got (40, 2)",
        ),
        (
            {**FITTING, f"{QKV}.lora_magnitude_vector.weight": (100,)},
            f"{QKV}: must fit the backbone's (144, 48), got (144, 48) and 100 magnitudes",
        ),
        ({"norm.weight": (40,)}, "norm: weight must have shape (48,) to fit the backbone's, got"),
        (
            {"vit.layers.0.mlp.fc1.bias": (5,)},
            "blocks.0.mlp.fc1: bias must have shape (192,) to fit the backbone's (192, 48), got",
        ),
        (
            {**FITTING, "vit.layers.0.attention.q_proj.bias": (48,)}
            | {"vit.encoder.layer.0.attention.attention.query.bias": (48,)},
            "vit.layers.0.attention.q_proj: blocks.0.attn.qkv occurs twice",
        ),
    ],
)
def test_what_does_not_fit_the_backbone_is_refused_naming_both_sides(
    backbone: Backbone, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    write_adapter(tmp_path, tensors)
    with pytest.raises(BackboneMismatchError, match=re.escape(message)):
        imported_from(tmp_path, backbone)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blocks.0.mlp.fc1.weight": (192, 48)}, "blocks.0.mlp.fc1: was trained whole"),
        ({f"{QKV}.lora_A.weight": (2, 48)}, f"{QKV}: lacks lora_B"),
        ({f"{QKV}.other": (2, 48)}, f"{QKV}: other cannot be imported"),
    ],
)
def test_what_is_no_small_support_is_refused(
    backbone: Backbone, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    write_adapter(tmp_path, tensors)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        imported_from(tmp_path, backbone)


def test_a_method_that_peft_saves_but_is_no_support_is_refused(
    backbone: Backbone, tmp_path: Path
) -> None:
    adapted = get_peft_model(backbone.build(N_CLASSES), LoHaConfig(r=2, target_modules=["qkv"]))
    with pytest.raises(ArtifactError, match="got LOHA"):
        imported_from(saved(adapted, tmp_path), backbone)


def test_a_pickled_adapter_is_not_read(backbone: Backbone, tmp_path: Path) -> None:
    write_adapter(tmp_path, FITTING)
    shutil.move(tmp_path / "adapter_model.safetensors", tmp_path / "adapter_model.bin")
    with pytest.raises(ArtifactError, match="a pickle can run code when it is read"):
        imported_from(tmp_path, backbone)


def test_files_that_are_missing_or_damaged_are_named(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="must be a folder, or USER/NAME on the Hub"):
        imported_from(tmp_path / "gone", backbone)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: must be a file, none is here"):
        imported_from(tmp_path, backbone)
    write_adapter(tmp_path, FITTING)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: Invalid JSON"):
        imported_from(tmp_path, backbone)
    write_adapter(tmp_path, FITTING)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors: not a readable"):
        imported_from(tmp_path, backbone)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        ArtifactError, match=r"adapter_model\.safetensors: must be .* 'git lfs pull'"
    ):
        imported_from(tmp_path, backbone)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("hf-hub:timm/vit_base", "hf-hub:timm/vit_base"),
        ("/home/ann/clients/acme/vit", "vit"),
        ("~/acme/vit/", "vit"),
        ("../acme/vit", "vit"),
        ("C:\\clients\\acme\\vit", "vit"),
        ("/", "unnamed"),
        (None, None),
    ],
)
def test_of_a_model_in_a_folder_only_its_name_is_kept(
    backbone: Backbone, tmp_path: Path, given: str | None, kept: str | None
) -> None:
    write_adapter(tmp_path, FITTING, base_model_name_or_path=given)
    assert imported_from(tmp_path, backbone).origin["trained_on"] == kept
