"""PEFT adapters of a network inside another one, and of trained BatchNorms."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig
from peft.tuners.glora import GloraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError
from glora_deploy.store.fingerprint import fingerprint
from peft_adapters import (
    FITTING,
    LINEAR,
    N_CLASSES,
    PEFT_WARNINGS,
    QKV,
    imported_from,
    make_adapter,
    merged_here,
    require_same,
    require_same_logits,
    saved,
    without,
    write_adapter,
)
from stored_tasks import make_backbone

pytestmark = PEFT_WARNINGS


class Wrapper(nn.Module):
    """timm's network under an attribute, its classifier within or beside it."""

    def __init__(self, network: nn.Module, beside: bool) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"vit": network})
        self.beside = beside
        if beside:
            self.head = cast(Any, network).head
            cast(Any, network).head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.net["vit"](x)
        return cast(Tensor, self.head(x)) if self.beside else x


WRAPPED = {
    "lora": LoraConfig(r=2, target_modules=["qkv", "fc1"], modules_to_save=["head"]),
    "patterns": LoraConfig(
        r=2,
        target_modules=LINEAR,
        alpha_pattern={r"^[a-z_.]+\.blocks.0.mlp.fc1": 11, r"\w+.blocks.1.attn.qkv": 5},
        modules_to_save=["head"],
    ),
    "all biases and a norm": LoraConfig(
        r=2, target_modules=["qkv"], bias="all", modules_to_save=["head", "blocks.1.norm1"]
    ),
    "dora on a convolution": LoraConfig(
        r=2, target_modules=["patch_embed.proj"], use_dora=True, modules_to_save=["head"]
    ),
    "glora": GloraConfig(r=2, target_modules=["qkv", "fc2"], modules_to_save=["head"]),
}


# PEFT 0.21 cannot merge GLoRA where modules_to_save also matches an Identity.
PLACES = [(name, beside) for name in WRAPPED for beside in (0, 1) if (name, beside) != ("glora", 1)]


@pytest.mark.parametrize(("name", "beside"), PLACES)
def test_an_adapter_of_a_wrapped_network_merges_to_what_peft_merges(
    backbone: Backbone, tmp_path: Path, name: str, beside: bool
) -> None:
    adapted = make_adapter(Wrapper(backbone.build(N_CLASSES), beside).eval(), WRAPPED[name])
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store")
    merged = adapted.merge_and_unload()
    require_same(found, without("net.vit.", merged.state_dict()))
    require_same_logits(found, backbone, merged)


@pytest.mark.parametrize("config", WRAPPED.values(), ids=WRAPPED.keys())
def test_an_adapter_of_transformers_timm_wrapper_merges_to_what_peft_merges(
    backbone: Backbone, tmp_path: Path, config: Any
) -> None:
    adapted = make_adapter(timm_wrapper(backbone), config)
    folder = saved(adapted, tmp_path / "adapter")
    assert any(".timm_model." in name for name in load_file(folder / "adapter_model.safetensors"))
    found = merged_here(folder, backbone, tmp_path / "store")
    merged = adapted.merge_and_unload()
    require_same(found, without("timm_model.", merged.state_dict()))
    require_same_logits(found, backbone, merged)


def timm_wrapper(backbone: Backbone) -> nn.Module:
    import transformers

    config = transformers.TimmWrapperConfig(
        architecture=backbone.architecture,
        num_labels=N_CLASSES,
        model_args=dict(backbone.model_args),
    )
    model = transformers.TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(backbone.build(N_CLASSES, seed=5).state_dict())
    return cast(nn.Module, model.eval())


def test_all_linear_layers_of_a_timm_wrapper_and_its_own_file_for_the_classifier(
    backbone: Backbone, tmp_path: Path
) -> None:
    model = timm_wrapper(backbone)
    cast(Any, model).save_pretrained(tmp_path / "model")
    adapted = make_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    folder = saved(adapted, tmp_path / "adapter")
    head = tmp_path / "model/model.safetensors"
    found = merged_here(folder, backbone, tmp_path / "store", head=head)
    merged = adapted.merge_and_unload()
    require_same(found, without("timm_model.", merged.state_dict()))
    require_same_logits(found, backbone, merged)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"a.{QKV}.lora_A.weight": (2, 48), f"a.{QKV}.lora_B.weight": (144, 2)}
            | {"b.blocks.1.attn.qkv.lora_A.weight": (2, 48)},
            "b.blocks.1.attn.qkv (lora_A) must be a layer of the backbone",
        ),
        (
            {"a.blocks.0.attn.proj.bias": (48,), "a.blocks.9.attn.qkv.lora_A.weight": (2, 48)},
            "a.blocks.9.attn.qkv (lora_A) must be a layer of the backbone",
        ),
    ],
    ids=["two wrappers", "no such layer"],
)
def test_one_wrapper_is_taken_off_and_no_more(
    backbone: Backbone, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    write_adapter(tmp_path, {f"a.{QKV}.bias": (144,), "a.norm.bias": (48,), **tensors})
    with pytest.raises(BackboneMismatchError, match=re.escape(message)):
        imported_from(tmp_path, backbone)


def test_a_classifier_under_a_name_of_its_own_is_named_in_the_refusal(
    backbone: Backbone, tmp_path: Path
) -> None:
    tensors = {f"vit.{name}": shape for name, shape in FITTING.items()}
    write_adapter(tmp_path, {**tensors, "top.weight": (3, 48), "classifier.bias": (3,)})
    with pytest.raises(BackboneMismatchError) as caught:
        imported_from(tmp_path, backbone)
    assert str(caught.value) == (
        f"{tmp_path}: must bring the classifier (modules_to_save), it does not; top is no module "
        "of vit_tiny_patch16_224. Give a safetensors file that holds head.weight with --head."
    )


# BatchNorm


def make_resnet() -> Backbone:
    """A ResNet of four blocks whose running statistics are not the initial ones."""
    backbone = make_backbone("resnet18", input_size=64, layers=[1, 1, 1, 1])
    generator = torch.Generator().manual_seed(3)
    for name, tensor in backbone.tensors.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.3, 2, generator=generator)
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    return replace(backbone, fingerprint=fingerprint(tensors))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_trained_batch_norm_computes_what_pefts_does(tmp_path: Path, wrapped: bool) -> None:
    backbone = make_resnet()
    config = LoraConfig(r=2, target_modules=["conv2"], modules_to_save=["fc", "bn1"])
    network: nn.Module = backbone.build(N_CLASSES)
    adapted = make_adapter(Wrapper(network, beside=False) if wrapped else network, config)
    adapted.train()
    with torch.no_grad():  # what training does to the running statistics of a trained norm
        for _ in range(3):
            adapted(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(4)))
    for name, module in adapted.named_modules():  # and must not do to the frozen ones
        if isinstance(module, nn.BatchNorm2d) and "modules_to_save" not in name:
            own = re.sub(r"^base_model\.model\.(net\.vit\.)?|\.original_module", "", name)
            module.running_mean = backbone.tensors[f"{own}.running_mean"].clone()
            module.running_var = backbone.tensors[f"{own}.running_var"].clone()
    folder = saved(adapted.eval(), tmp_path / "adapter")
    assert any("num_batches" in name for name in load_file(folder / "adapter_model.safetensors"))
    imported = imported_from(folder, backbone)
    assert imported.notes == (
        "the running statistics of each BatchNorm that was trained went into its weight and bias: "
        "the same function, not the same tensors",
    )
    assert str(imported.layers["bn1"].layer_paths()) == "A=none B=vector C=none D=none E=vector"
    found = merged_here(folder, backbone, tmp_path / "store")
    merged = adapted.merge_and_unload()
    assert not torch.equal(
        merged.state_dict()[("net.vit." * wrapped) + "bn1.running_var"],
        backbone.tensors["bn1.running_var"],
    )
    require_same_logits(found, backbone, merged)


def test_running_statistics_of_another_size_or_layer_are_refused(
    backbone: Backbone, tmp_path: Path
) -> None:
    write_adapter(tmp_path, {"norm.weight": (48,), "norm.running_var": (48,)})
    with pytest.raises(ArtifactError, match="norm: has running statistics, the backbone's layer h"):
        imported_from(tmp_path, backbone)
    head = {"fc.weight": (3, 512), "fc.bias": (3,)}
    write_adapter(tmp_path, {"bn1.running_mean": (9,), "bn1.running_var": (64,), **head})
    with pytest.raises(BackboneMismatchError, match=r"bn1: running_mean must have shape \(64,\)"):
        imported_from(tmp_path, make_resnet())
