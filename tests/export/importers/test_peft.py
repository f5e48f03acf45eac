"""PEFT's own merge_and_unload is the reference: the import must give the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.glora import GloraConfig
from safetensors.torch import load_file, save_file

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import BackboneMismatchError
from peft_adapters import (
    HEAD,
    LINEAR,
    N_CLASSES,
    PEFT_WARNINGS,
    imported_from,
    make_adapter,
    merged_here,
    require_same,
    saved,
)
from stored_tasks import make_backbone

pytestmark = PEFT_WARNINGS


LORA: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": LINEAR},
    "alpha": {"target_modules": ["qkv"], "lora_alpha": 3},
    "rank-stabilised": {"target_modules": LINEAR, "lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"fc1": 5, r"blocks\.1\.attn\.qkv": 7},
        "alpha_pattern": {"blocks.0.mlp.fc1": 11, "^blocks.1.attn.proj": 2, "fc2": 3},
    },
    "biases of its layers": {"target_modules": ["qkv", "fc2"], "bias": "lora_only"},
    "all biases": {"target_modules": ["qkv"], "bias": "all"},
    "a bias of its own": {"target_modules": ["qkv", "fc1"], "lora_bias": True},
    "convolution": {"target_modules": ["patch_embed.proj", "fc1"]},
    "dora": {"target_modules": LINEAR, "use_dora": True, "lora_alpha": 3},
    "dora on a convolution": {"target_modules": ["patch_embed.proj"], "use_dora": True},
    "a trained norm": {"target_modules": ["qkv"], "modules_to_save": ["head", "norm"]},
    "every bias and a norm": {
        "target_modules": ["qkv"],
        "bias": "all",
        "modules_to_save": ["head", "norm"],
    },
    "one block": {
        "target_modules": ["qkv"],
        "layers_to_transform": [1],
        "layers_pattern": "blocks",
    },
}


@pytest.mark.parametrize("options", LORA.values(), ids=LORA.keys())
def test_lora_merges_to_what_peft_merges(
    backbone: Backbone, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = LoraConfig(**{"r": 2, "modules_to_save": HEAD} | options)
    adapted = make_adapter(backbone.build(N_CLASSES), config)
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store")
    require_same(found, adapted.merge_and_unload().state_dict())
    assert not all(torch.equal(found[name], t) for name, t in backbone.tensors.items())


@pytest.mark.parametrize("bias", ["none", "glora_only", "all"])
@pytest.mark.parametrize(
    ("a_b", "c", "d_e"),
    [
        ("lora", "lora", "constant"),
        ("vector", "vector", "vector"),
        ("constant", "none", "none"),
        ("none", "lora", "vector"),
    ],
)
def test_glora_merges_to_what_peft_merges(
    backbone: Backbone, tmp_path: Path, a_b: Any, c: Any, d_e: Any, bias: str
) -> None:
    config = GloraConfig(
        r=2,
        target_modules=LINEAR,
        config_A_B=a_b,
        config_C=c,
        config_D_E=d_e,
        bias=bias,
        modules_to_save=HEAD,
    )
    adapted = make_adapter(backbone.build(N_CLASSES), config)
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store")
    require_same(found, adapted.merge_and_unload().state_dict())


def test_glora_on_a_layer_without_bias_has_no_c_d_e(tmp_path: Path) -> None:
    backbone = make_backbone(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, qkv_bias=False
    )
    config = GloraConfig(r=2, target_modules=["qkv"], modules_to_save=HEAD)
    adapted = make_adapter(backbone.build(N_CLASSES), config)
    folder = saved(adapted, tmp_path / "adapter")
    imported = imported_from(folder, backbone)
    assert str(imported.layers["blocks.0.attn.qkv"].layer_paths()) == (
        "A=lora:2 B=lora:2 C=none D=none E=none"
    )
    found = merged_here(folder, backbone, tmp_path / "store")
    require_same(found, adapted.merge_and_unload().state_dict())


def test_the_forms_of_peft_become_the_paths_of_the_same_name(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = GloraConfig(
        r=2,
        target_modules=["fc1", "qkv"],
        config_A_B="constant",
        config_C="vector",
        config_D_E="constant",
        modules_to_save=HEAD,
    )
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path)
    layers = imported_from(folder, backbone).layers
    assert list(layers) == [
        "blocks.0.attn.qkv",
        "blocks.0.mlp.fc1",
        "blocks.1.attn.qkv",
        "blocks.1.mlp.fc1",
    ]
    assert {str(layer.layer_paths()) for layer in layers.values()} == {
        "A=scalar B=scalar C=vector D=scalar E=scalar"
    }


def test_lora_keeps_its_rank_and_touches_no_other_layer(backbone: Backbone, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["qkv"], lora_alpha=4, modules_to_save=HEAD)
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path)
    imported = imported_from(folder, backbone)
    assert {name: str(layer.layer_paths()) for name, layer in imported.layers.items()} == {
        f"blocks.{i}.attn.qkv": "A=none B=lora:2 C=none D=none E=none" for i in range(2)
    }
    file = load_file(folder / "adapter_model.safetensors")
    lora_b = file["base_model.model.blocks.1.attn.qkv.lora_B.weight"]
    assert np.array_equal(imported.tensors["blocks.1.attn.qkv.B_d"], 2 * lora_b.numpy())
    assert imported.origin["imported_from"] == "peft LORA 0.21.2"
    assert imported.notes == ()


def test_an_adapter_in_half_precision_is_widened(backbone: Backbone, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=LINEAR, modules_to_save=HEAD)
    adapted = make_adapter(backbone.build(N_CLASSES), config)
    folder = saved(adapted, tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(half, path)
    again = PeftModel.from_pretrained(backbone.build(N_CLASSES), folder).eval()
    found = merged_here(folder, backbone, tmp_path / "store")
    require_same(found, again.merge_and_unload().state_dict())


def test_a_head_the_adapter_lacks_can_be_given(backbone: Backbone, tmp_path: Path) -> None:
    model = backbone.build(N_CLASSES, seed=5)
    head = {name: t.clone() for name, t in model.state_dict().items() if name.startswith("head")}
    save_file({**head, "norm.weight": torch.ones(48)}, tmp_path / "head.safetensors")
    adapted = make_adapter(model, LoraConfig(r=2, target_modules=["qkv"], bias="all"))
    folder = saved(adapted, tmp_path / "adapter")
    with pytest.raises(BackboneMismatchError, match=r"must bring the classifier .* with --head"):
        imported_from(folder, backbone)
    found = merged_here(folder, backbone, tmp_path / "store", head=tmp_path / "head.safetensors")
    require_same(found, adapted.merge_and_unload().state_dict())
    save_file({"norm.weight": torch.ones(48)}, tmp_path / "none.safetensors")
    with pytest.raises(BackboneMismatchError, match="must hold the classifier head, it does not"):
        imported_from(folder, backbone, head=tmp_path / "none.safetensors")
