from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from glora_deploy.glora.forms import Subnet
from glora_deploy.glora.supernet_layers import (
    extract_supports,
    find_layers,
    glora_layers,
    inject,
    set_subnet,
)
from stored_tasks import make_backbone

BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def make_model() -> nn.Module:
    return make_backbone().build(5)


def test_by_default_every_linear_layer_is_found_in_module_order() -> None:
    found = find_layers(make_model(), exclude=("head",))
    assert list(found) == [f"blocks.{i}.{name}" for i in (0, 1) for name in BLOCK]
    assert {shape.kind for shape in found.values()} == {"linear"}
    assert (found["blocks.0.attn.qkv"].d_out, found["blocks.0.attn.qkv"].d_in) == (144, 48)


def test_kinds_and_patterns_choose_the_layers() -> None:
    model = make_model()
    convs = find_layers(model, kinds=("conv",))
    assert {name: shape.d_in for name, shape in convs.items()} == {"patch_embed.proj": 3 * 8 * 8}
    norms = find_layers(model, kinds=("affine",))
    assert list(norms) == [
        "blocks.0.norm1",
        "blocks.0.norm2",
        "blocks.1.norm1",
        "blocks.1.norm2",
        "norm",
    ]
    qkv = find_layers(model, include=("*.qkv", "head"), exclude=("head",))
    assert list(qkv) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    second = find_layers(model, exclude=("blocks.0", "head"))
    assert list(second) == [f"blocks.1.{name}" for name in BLOCK]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no linear layer matches \['nothing'\]"):
        find_layers(make_model(), include=("nothing",))


def test_a_supernet_trains_its_supports_and_freezes_everything_else() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = find_layers(model, kinds=("linear", "conv", "affine"), exclude=("head",))
    space = inject(model, layers, ranks=(4, 2), generator=torch.Generator().manual_seed(0))
    assert list(space.shapes) == list(layers) == list(glora_layers(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".".join(name.split(".")[:-1]) in layers for name in trained)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert n_trained == space.largest().n_parameters(layers)
    frozen = {name.replace(".base.", "."): p for name, p in model.state_dict().items()}
    for name, tensor in before.items():
        assert torch.equal(frozen[name], tensor)


def test_the_same_generator_gives_the_same_supernet() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        model = make_model()
        inject(
            model,
            find_layers(model, exclude=("head",)),
            ranks=(4,),
            generator=torch.Generator().manual_seed(seed),
        )
        return model.state_dict()

    first, second, other = state(0), state(0), state(1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first["blocks.0.mlp.fc1.A_u"], other["blocks.0.mlp.fc1.A_u"])


def test_scales_go_to_the_layers_they_are_named_for() -> None:
    model = make_model()
    layers = find_layers(model, exclude=("head",))
    scales = {"blocks.1.mlp.fc1": {"A": 0.5}}
    inject(model, layers, ranks=(4,), generator=torch.Generator(), scales=scales)  # type: ignore[arg-type]
    by_name = glora_layers(model)
    assert by_name["blocks.1.mlp.fc1"].scales["A"] == 0.5
    assert set(by_name["blocks.0.mlp.fc1"].scales.values()) == {1.0}


def test_a_subnet_is_set_on_the_layers_it_names_and_read_back() -> None:
    model = make_model()
    layers = find_layers(model, exclude=("head",))
    space = inject(model, layers, ranks=(4, 2), generator=torch.Generator())
    subnet = space.draw(random.Random(3))
    set_subnet(model, subnet)
    assert Subnet({name: layer.paths for name, layer in glora_layers(model).items()}) == subnet
    supports = extract_supports(model, subnet)
    assert sum(tensor.numel() for tensor in supports.values()) == subnet.n_parameters(layers)
    shapes = {
        f"{name}.{key}": shape
        for name, paths in subnet.items()
        for key, shape in paths.tensor_shapes(layers[name]).items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in supports.items()} == shapes
    assert not any(tensor.requires_grad for tensor in supports.values())


def test_a_subnet_of_another_network_is_refused() -> None:
    model = make_model()
    space = inject(
        model, find_layers(model, exclude=("head",)), ranks=(4,), generator=torch.Generator()
    )
    short = Subnet(dict(list(space.largest().items())[1:]))
    with pytest.raises(ValueError, match=r"differ in 1 layers: \['blocks.0.attn.qkv'\]"):
        set_subnet(model, short)
