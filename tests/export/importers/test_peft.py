"""PEFT's own merge_and_unload is the reference: the import must give the same network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.glora import GloraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone, load_backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, HubError, StoreError
from glora_deploy.export.importers.assemble import Imported, store_import
from glora_deploy.export.importers.peft import import_peft, read_adapter
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore
from hub_server import HubServer, local_hub
from stored_tasks import make_backbone, merged_state

pytestmark = [
    # PEFT 0.21 asks transformers 5.23 by a name that is going away.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT 0.21 takes the bias of lora_B for a shard of a matrix.
    pytest.mark.filterwarnings(
        r"ignore:Adapter 'default'. 4 LoRA tensor.s. have invalid shape"
        r".*lora_B.bias:peft.utils.warning.PeftWarning"
    ),
]

N_CLASSES = 3
RTOL = 1e-6  # float32, of the largest entry: a product, a sum and a few roundings
LINEAR = ["qkv", "attn.proj", "fc1", "fc2"]
HEAD = ["head"]
QKV = "blocks.0.attn.qkv"
FITTING = {f"{QKV}.lora_A.weight": (2, 48), f"{QKV}.lora_B.weight": (144, 2)}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def make_adapter(model: nn.Module, config: Any, *, scale: float = 0.1) -> PeftModel:
    """A PEFT model whose every trainable number is random."""
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def saved(adapted: PeftModel, folder: Path) -> Path:
    adapted.save_pretrained(folder)
    return folder


def imported_from(source: Path | str, backbone: Backbone, **options: Any) -> Imported:
    return import_peft(read_adapter(source, **options), backbone)


def merged_here(folder: Path, backbone: Backbone, root: Path, **options: Any) -> dict[str, Tensor]:
    """Import, store, read back and merge."""
    imported = imported_from(folder, backbone, **options)
    store = ArtifactStore.create(root)
    artifact = store_import(store, backbone, imported, task="pets")
    return {name: tensor.float() for name, tensor in merged_state(store, artifact).items()}


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = (found[name].double() - tensor.double()).abs().max()
        assert worst <= RTOL * tensor.abs().max(), name


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


# The classifier, adapted


def save_head(model: nn.Module, path: Path, prefix: str = "") -> Path:
    """A network's tensors as a file that a classifier can be taken from."""
    state = {f"{prefix}{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, path)
    return path


def require_same_logits(
    found: Mapping[str, Tensor],
    backbone: Backbone,
    merged: nn.Module,
    *,
    n_classes: int = N_CLASSES,
) -> None:
    """The imported network computes what PEFT's merged one does, to rounding."""
    network = backbone.build(n_classes)
    network.load_state_dict(found)
    images = torch.randn(2, *backbone.input_size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = merged(images)
        expected = getattr(expected, "logits", expected)
        assert (network(images) - expected).abs().max() < 1e-4 * expected.std()


ON_HEAD: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules=["qkv", "head"], lora_alpha=3),
    "all linear layers": LoraConfig(r=2, target_modules="all-linear"),
    "a pattern for it": LoraConfig(
        r=2, target_modules=["head"], rank_pattern={"head": 3}, alpha_pattern={"^head": 5}
    ),
    "its bias too": LoraConfig(r=2, target_modules=["head"], bias="lora_only"),
    "every bias": LoraConfig(r=2, target_modules=["fc1", "head"], bias="all"),
    "a bias of its own": LoraConfig(r=2, target_modules=["head"], lora_bias=True),
    "dora": LoraConfig(r=2, target_modules=["head"], use_dora=True),
    "glora": GloraConfig(r=2, target_modules=["qkv", "head"], bias="all"),
    "glora vectors": GloraConfig(
        target_modules=["head"], config_A_B="vector", config_C="vector", config_D_E="constant"
    ),
}


@pytest.mark.filterwarnings(
    r"ignore:Adapter 'default'. 1 LoRA tensor.s. have.*lora_B.bias:peft.utils.warning.PeftWarning"
)
@pytest.mark.parametrize("config", ON_HEAD.values(), ids=ON_HEAD.keys())
@pytest.mark.parametrize("prefix", ["", "timm_model."], ids=["plain", "prefixed"])
def test_what_was_trained_on_the_classifier_is_merged_into_the_one_given(
    backbone: Backbone, tmp_path: Path, config: Any, prefix: str
) -> None:
    model = backbone.build(N_CLASSES, seed=5)
    head = save_head(model, tmp_path / "model.safetensors", prefix)
    adapted = make_adapter(model, config)
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store", head=head)
    merged = adapted.merge_and_unload()
    require_same(found, merged.state_dict())
    require_same_logits(found, backbone, merged)
    assert not torch.equal(found["head.weight"], load_file(head)[f"{prefix}head.weight"])


def test_an_adapted_classifier_that_is_nowhere_is_refused_saying_so(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules="all-linear")
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path)
    with pytest.raises(BackboneMismatchError) as caught:
        imported_from(folder, backbone)
    assert str(caught.value) == (
        f"{folder}: head: the classifier was adapted (lora_A, lora_B) and not saved: its frozen "
        "weight is in no file here. Give a safetensors file that holds head.weight, as it was when "
        "training began, with --head; where that was random and never saved, nothing restores it."
    )


def test_a_classifier_of_another_size_does_not_take_an_update(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules=["head"])
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path / "adapter")
    head = save_head(backbone.build(7), tmp_path / "head.safetensors")
    with pytest.raises(
        BackboneMismatchError,
        match=r"head: must fit the classifier's \(7, 48\), got B_d \(3, 2\), B_u \(2, 48\)\. Give",
    ):
        imported_from(folder, backbone, head=head)


def test_a_file_with_two_classifiers_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    write_adapter(tmp_path, FITTING)
    names = ("student.head.weight", "teacher.head.weight")
    save_file({name: torch.zeros(3, 48) for name in names}, tmp_path / "head.safetensors")
    with pytest.raises(BackboneMismatchError, match=r"once, got it behind student\., teacher\.\."):
        imported_from(tmp_path, backbone, head=tmp_path / "head.safetensors")


# Networks inside others


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


def without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


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


# transformers


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


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch, tmp_path) as server:
        yield server


def test_an_adapter_on_the_hub_is_the_one_in_a_folder(
    backbone: Backbone, tmp_path: Path, hub: HubServer
) -> None:
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=HEAD)
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path / "adapter")
    hub.add("ann/lora", {path.name: path.read_bytes() for path in folder.iterdir()})
    found = imported_from("ann/lora", backbone, endpoint=hub.endpoint)
    for name, tensor in imported_from(folder, backbone).tensors.items():
        assert np.array_equal(found.tensors[name], tensor)


def test_offline_an_adapter_comes_from_the_cache(
    backbone: Backbone, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path, FITTING)
    names = ("adapter_config.json", "adapter_model.safetensors")
    hub.add("ann/lora", {name: (folder / name).read_bytes() for name in names})
    imported_from("ann/lora", backbone, endpoint=hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    before = list(hub.requests)
    assert imported_from("ann/lora", backbone, endpoint=hub.endpoint).tensors
    assert hub.requests == before


def test_a_pickle_on_the_hub_is_not_even_fetched(backbone: Backbone, hub: HubServer) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.bin": b"cos\nsystem\n"}
    hub.add("ann/lora", files)
    with pytest.raises(ArtifactError, match="a pickle can run code when it is read"):
        imported_from("ann/lora", backbone, endpoint=hub.endpoint)
    assert not [request for request in hub.requests if "adapter_model.bin" in request]


def test_a_repository_without_an_adapter_is_refused(backbone: Backbone, hub: HubServer) -> None:
    hub.add("ann/lora", {"config.json": b"{}"})
    with pytest.raises(HubError, match=r"^ann/lora: a file must be there, it is not .*adapter_con"):
        imported_from("ann/lora", backbone, endpoint=hub.endpoint)


# Refusals


def write_adapter(folder: Path, tensors: Mapping[str, tuple[int, ...]], **config: Any) -> Path:
    """An adapter of zeros, with a classifier."""
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["qkv"]}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    head = {"head.weight": (3, 48), "head.bias": (3,)} if "classifier.bias" not in tensors else {}
    shapes = {f"base_model.model.{name}": shape for name, shape in {**head, **tensors}.items()}
    save_file(
        {name: torch.zeros(shape) for name, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


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
