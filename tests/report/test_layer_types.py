from __future__ import annotations

from glora_deploy.report.layer_types import by_type


def test_layers_of_one_type_differ_by_numbers_alone() -> None:
    names = [f"blocks.{i}.{part}" for i in range(12) for part in ("attn.qkv", "mlp.fc1")]
    found = by_type(names)
    assert list(found) == ["attn.qkv", "mlp.fc1"]
    assert found["mlp.fc1"] == [f"blocks.{i}.mlp.fc1" for i in range(12)]


def test_what_only_some_types_begin_with_stays() -> None:
    names = ["stem.conv", "stages.0.blocks.0.fc", "stages.1.blocks.0.fc", "stages.0.blocks.0.dw"]
    assert list(by_type(names)) == ["stem.conv", "stages.blocks.fc", "stages.blocks.dw"]


def test_one_type_alone_keeps_the_end_of_its_name() -> None:
    assert by_type(["blocks.0.attn.qkv", "blocks.1.attn.qkv"]) == {
        "attn.qkv": ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    }
    assert by_type(["fc"]) == {"fc": ["fc"]}


def test_a_name_that_is_another_ones_beginning_is_a_type_too() -> None:
    assert list(by_type(["a.0.b", "a.0.b.c"])) == ["b", "b.c"]


def test_the_stages_of_a_resnet_are_counted_as_blocks_are() -> None:
    names = ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.downsample.0"]
    assert by_type([*names, "layer2.0.downsample.1"]) == {
        "conv1": ["conv1"],
        "layer.conv1": ["layer1.0.conv1", "layer2.0.conv1"],
        "layer.downsample.0": ["layer2.0.downsample.0"],
        "layer.downsample.1": ["layer2.0.downsample.1"],
    }
