from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from glora_deploy.backbones.load import outline
from glora_deploy.training.chosen_layers import choose_layers
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.methods import METHODS
from glora_deploy.training.setting_error import SettingError
from stored_tasks import make_backbone

QKV = ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
ATTENTION = [f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("qkv", "proj")]
LINEAR = [
    f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return make_backbone().build(3)


def chosen(model: nn.Module, method: str = "glora", **changes: Any) -> list[str]:
    config = TrainConfig.preset("short", **{"ranks": (2,), **changes})
    return list(choose_layers(model, config, ["head"], method=METHODS[method]))


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("glora", {}, LINEAR),
        ("glora", {"include": ("*",), "exclude": ("*.mlp",)}, ATTENTION),
        ("glora", {"include": ("*.qkv", "*.proj")}, ATTENTION),
        ("glora", {"kinds": ("conv",)}, ["patch_embed.proj"]),
        ("lora", {}, QKV),
        ("lora", {"exclude": ("blocks.0",)}, QKV[1:]),
        ("lora", {"include": ("blocks.*.attn.*",)}, ATTENTION),
        ("lora", {"include": ("*",)}, LINEAR),
        ("lora", {"kinds": ("conv",)}, ["patch_embed.proj"]),
        ("lora", {"kinds": ("linear", "conv")}, ["patch_embed.proj", *LINEAR]),
    ],
)
def test_the_layers_are_those_that_were_asked_for(
    vit: nn.Module, method: str, changes: dict[str, Any], expected: list[str]
) -> None:
    assert chosen(vit, method, **changes) == expected


def test_lora_takes_every_linear_layer_where_none_is_called_qkv() -> None:
    mixer = outline("mixer_s32_224").build_empty(3)
    found = chosen(mixer, "lora")
    assert found == chosen(mixer)
    assert "blocks.0.mlp_tokens.fc1" in found


WRONG: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    (
        "glora",
        {"include": ("blocks.*.atn.qkv",)},
        ("include",),
        r"include pattern 'blocks.\*.atn.qkv' must match a linear layer, it matches none. "
        r"Close: blocks.\*.attn.qkv",
    ),
    ("glora", {"include": ("*.qkv", "nix")}, ("include",), "include pattern 'nix' must match"),
    (
        "glora",
        {"include": ("nix",)},
        ("include",),
        r"There are: blocks.\*.attn.qkv, blocks.\*.attn.proj, blocks.\*.mlp.fc1, blocks",
    ),
    (
        "glora",
        {"include": ("blocks.12.attn.qkv",)},
        ("include",),
        r"'blocks.12.attn.qkv' must match .* Close: blocks.\*.attn.qkv",
    ),
    (
        "glora",
        {"include": ("blocks.0.attn",)},
        ("include",),
        r"Layers lie below it: blocks.0.attn.\*",
    ),
    (
        "glora",
        {"include": ("patch_embed.*",)},
        ("include",),
        r"What it matches \(conv\) is not to be adapted: see --layers",
    ),
    (
        "glora",
        {"include": ("head",)},
        ("include",),
        "The classifier head is trained whole and never adapted",
    ),
    (
        "glora",
        {"include": ("*.qkv", "*.fc1"), "exclude": ("*.mlp",)},
        ("include", "exclude"),
        r"include pattern '\*.fc1' must match a layer that is not excluded, exclude \*.mlp leaves",
    ),
    ("glora", {"exclude": ("blocks.*.mpl",)}, ("exclude",), "exclude pattern 'blocks.*.mpl' must"),
    ("glora", {"exclude": ("head",)}, ("exclude",), "The classifier head is trained whole"),
    ("glora", {"exclude": ("patch_embed",)}, ("exclude",), r"What it matches \(conv\)"),
    (
        "glora",
        {"include": ("*.qkv",), "exclude": ("*.mlp",)},
        ("exclude",),
        "must match a layer that would be adapted, it matches none",
    ),
    ("lora", {"exclude": ("*.mlp",)}, ("exclude",), "must match a layer that would be adapted"),
    ("glora", {"exclude": ("*",)}, ("exclude",), "no linear layer is left for glora to adapt"),
    (
        "glora",
        {"kinds": ("linear", "conv"), "include": ("blocks.*",)},
        ("kinds",),
        "kinds must be those of layers that are adapted, got conv",
    ),
]


@pytest.mark.parametrize(("method", "changes", "blamed", "message"), WRONG)
def test_what_would_choose_nothing_is_refused_with_what_may_have_been_meant(
    vit: nn.Module,
    method: str,
    changes: dict[str, Any],
    blamed: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        chosen(vit, method, **changes)
    assert caught.value.settings == blamed


def test_a_pattern_written_for_one_method_need_not_matter_to_one_compared_with_it(
    vit: nn.Module,
) -> None:
    config = TrainConfig.preset("short", ranks=(2,), exclude=("*.mlp",))
    found = choose_layers(vit, config, ["head"], method=METHODS["lora"], strict=False)
    assert list(found) == QKV


def test_a_network_without_layers_of_a_kind_is_refused() -> None:
    resnet = make_backbone("test_resnet").build(3)
    with pytest.raises(SettingError, match="no linear layer is left for glora to adapt outside"):
        choose_layers(resnet, TrainConfig.preset("short"), ["fc"], method=METHODS["glora"])
