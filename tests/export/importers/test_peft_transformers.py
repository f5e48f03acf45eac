"""PEFT adapters of transformers' own vision networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.glora import GloraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone, load_backbone
from glora_deploy.errors import BackboneMismatchError
from peft_adapters import (
    N_CLASSES,
    PEFT_WARNINGS,
    imported_from,
    make_adapter,
    merged_here,
    require_same,
    saved,
    without,
    write_adapter,
)

pytestmark = PEFT_WARNINGS


VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "num_labels": N_CLASSES,
}


def make_transformers_vit(kind: str, **changes: Any) -> nn.Module:
    import transformers

    if kind == "vit":
        config = transformers.ViTConfig(**VIT | {"intermediate_size": 192} | changes)
        model: nn.Module = transformers.ViTForImageClassification(config)
    else:
        config = transformers.Dinov2Config(**VIT | {"mlp_ratio": 4} | changes)
        model = transformers.Dinov2Model(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def timm_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers network's tensors as timm names and shapes them, written out by hand."""
    state = {re.sub(r"^(vit|dinov2)\.", "", name): t for name, t in state.items()}
    moved = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
    }
    for leaf in ("weight", "bias"):
        moved[f"patch_embed.proj.{leaf}"] = state[f"embeddings.patch_embeddings.projection.{leaf}"]
        moved[f"norm.{leaf}"] = state[f"layernorm.{leaf}"]
        if f"classifier.{leaf}" in state:
            moved[f"head.{leaf}"] = state[f"classifier.{leaf}"]
        for i in range(2):
            old = f"layers.{i}" if f"layers.{i}.attention.q_proj.weight" in state else ""
            old = old or f"encoder.layer.{i}"
            qkv = [state[f"{old}.attention.{letter}_proj.{leaf}"] for letter in "qkv"]
            moved[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat(qkv)
            moved[f"blocks.{i}.attn.proj.{leaf}"] = state[f"{old}.attention.o_proj.{leaf}"]
            for n, (vit, dino) in enumerate(
                (("layernorm_before", "norm1"), ("layernorm_after", "norm2")), start=1
            ):
                norm = vit if f"{old}.{vit}.{leaf}" in state else dino
                moved[f"blocks.{i}.norm{n}.{leaf}"] = state[f"{old}.{norm}.{leaf}"]
                moved[f"blocks.{i}.mlp.fc{n}.{leaf}"] = state[f"{old}.mlp.fc{n}.{leaf}"]
                if f"{old}.layer_scale{n}.lambda1" in state:
                    moved[f"blocks.{i}.ls{n}.gamma"] = state[f"{old}.layer_scale{n}.lambda1"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in moved.items()}


def timm_backbone(model: nn.Module, folder: Path, name: str, **model_args: Any) -> Backbone:
    """The timm backbone with a transformers network's weights."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    weights = timm_weights(model.state_dict())
    head = {"head.weight": torch.zeros(N_CLASSES, 48), "head.bias": torch.zeros(N_CLASSES)}
    save_file({**head, **weights}, folder / "backbone.safetensors")
    return load_backbone(
        name, checkpoint=folder / "backbone.safetensors", model_args={**size, **model_args}
    )


TRANSFORMERS = {
    "query and value": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_alpha=3),
    "everything": LoraConfig(
        r=2,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "projection"],
        rank_pattern={"v_proj": 3},
        bias="all",
    ),
    "dora": LoraConfig(r=2, target_modules=["q_proj", "k_proj", "fc1"], use_dora=True),
    "glora lora": GloraConfig(r=2, target_modules=["q_proj", "v_proj", "fc2"]),
    "glora vectors": GloraConfig(
        target_modules=["k_proj", "o_proj"],
        config_A_B="vector",
        config_C="vector",
        config_D_E="vector",
        bias="all",
    ),
    "glora constants": GloraConfig(
        target_modules=["q_proj", "k_proj"], config_A_B="constant", config_C="none"
    ),
}


@pytest.mark.parametrize("config", TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def test_a_transformers_vit_merges_to_what_peft_merges(tmp_path: Path, config: Any) -> None:
    model = make_transformers_vit("vit")
    backbone = timm_backbone(model, tmp_path, "vit_tiny_patch16_224")
    config.modules_to_save = ["classifier"]
    adapted = make_adapter(model, config)
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store")
    merged = adapted.merge_and_unload()
    require_same(found, timm_weights(merged.state_dict()))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    network = backbone.build(N_CLASSES)
    network.load_state_dict(found)
    with torch.inference_mode():
        expected = merged(images).logits
        assert (network(images) - expected).abs().max() < 1e-4 * expected.std()


def test_shares_of_qkv_add_their_ranks(tmp_path: Path) -> None:
    model = make_transformers_vit("vit")
    backbone = timm_backbone(model, tmp_path, "vit_tiny_patch16_224")
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 3},
        modules_to_save=["classifier"],
    )
    imported = imported_from(saved(make_adapter(model, config), tmp_path / "adapter"), backbone)
    assert str(imported.layers["blocks.0.attn.qkv"].layer_paths()) == (
        "A=none B=lora:5 C=none D=none E=none"
    )
    down = imported.tensors["blocks.0.attn.qkv.B_d"]
    assert not down[:48, 2:].any()
    assert not down[48:96].any()
    assert not down[96:, :2].any()
    assert imported.notes == (
        "query, key and value became one layer: ranks add up, and C and D went into E",
        "the weights are equal, logits only nearly so where layer_norm_eps differs: "
        "transformers' ViT has 1e-12, timm's 1e-6",
    )


def test_the_layer_names_of_transformers_4_mean_the_same(tmp_path: Path) -> None:
    model = make_transformers_vit("vit")
    backbone = timm_backbone(model, tmp_path, "vit_tiny_patch16_224")
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
        bias="all",
        modules_to_save=["classifier"],
    )
    folder = saved(make_adapter(model, config), tmp_path / "adapter")
    expected = imported_from(folder, backbone)
    path = folder / "adapter_model.safetensors"
    older = {}
    for name, tensor in load_file(path).items():
        for new, old in (
            ("vit.layers.", "vit.encoder.layer."),
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            name = name.replace(new, old)
        older[name] = tensor
    save_file(older, path)
    found = imported_from(folder, backbone)
    assert found.layers == expected.layers
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert np.array_equal(found.tensors[name], tensor)


def test_a_dinov2_merges_to_what_peft_merges(tmp_path: Path) -> None:
    model = make_transformers_vit("dinov2")
    backbone = timm_backbone(model, tmp_path, "vit_small_patch14_dinov2", init_values=1.0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"], bias="all")
    adapted = make_adapter(model, config)
    folder = saved(adapted, tmp_path / "adapter")
    head = {"head.weight": torch.randn(N_CLASSES, 48), "head.bias": torch.randn(N_CLASSES)}
    save_file(head, tmp_path / "head.safetensors")
    found = merged_here(folder, backbone, tmp_path / "store", head=tmp_path / "head.safetensors")
    require_same(found, {**timm_weights(adapted.merge_and_unload().state_dict()), **head})


def test_the_double_width_classifier_of_dinov2_is_refused(tmp_path: Path) -> None:
    backbone = timm_backbone(
        make_transformers_vit("dinov2"), tmp_path, "vit_small_patch14_dinov2", init_values=1.0
    )
    write_adapter(tmp_path, {"classifier.weight": (3, 96), "classifier.bias": (3,)})
    with pytest.raises(
        BackboneMismatchError,
        match=r"the classifier's head.weight is \(3, 96\), the backbone's \(3, 48\)",
    ):
        imported_from(tmp_path, backbone)


def test_a_transformers_vit_may_be_wrapped_too(tmp_path: Path) -> None:
    class Around(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

    vit = make_transformers_vit("vit")
    backbone = timm_backbone(vit, tmp_path, "vit_tiny_patch16_224")
    config = LoraConfig(r=2, target_modules=["q_proj", "fc1"], modules_to_save=["classifier"])
    adapted = make_adapter(Around(vit), config)
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store")
    require_same(found, timm_weights(without("model.", adapted.merge_and_unload().state_dict())))
