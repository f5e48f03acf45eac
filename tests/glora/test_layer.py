from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from glora_deploy.glora.forms import LayerForms
from glora_deploy.glora.layer import GloraLayer, layer_shape
from glora_deploy.merge.formula import merge
from layers import BASES, RANKS, every_paths, make_base, make_input, make_layer
from reference import reference_merge

ATOL = 2e-5  # float32, sums of at most 36 products of numbers of size one


@pytest.mark.parametrize("name", BASES)
def test_every_path_starts_as_an_exact_no_op(name: str) -> None:
    base = make_base(name)
    layer = GloraLayer(copy.deepcopy(base), RANKS, torch.Generator().manual_seed(0)).eval()
    x = make_input(name)
    expected = base(x)
    for paths in every_paths(layer.shape):
        layer.paths = paths
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_weight_and_bias_are_those_of_the_formula_on_every_combination_of_paths(name: str) -> None:
    layer = make_layer(name)
    w0 = layer.base.weight.detach()
    b0 = None if getattr(layer.base, "bias", None) is None else layer.base.bias.detach().numpy()
    for paths in every_paths(layer.shape):
        layer.paths = paths
        supports = {k: t.numpy() for k, t in layer.supports(paths).items()}
        w, b = reference_merge(w0.reshape(layer.shape.d_out, -1).numpy(), b0, supports)
        found = layer.weight.detach().numpy()
        np.testing.assert_allclose(found, w.reshape(w0.shape), rtol=0, atol=ATOL)
        if b is None:
            assert layer.bias is None
        else:
            assert layer.bias is not None
            np.testing.assert_allclose(layer.bias.detach().numpy(), b, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", BASES)
def test_the_layer_computes_what_the_vanilla_layer_with_merged_weights_computes(name: str) -> None:
    layer = make_layer(name).eval()
    vanilla = make_base(name)
    x = make_input(name)
    for paths in list(every_paths(layer.shape))[::7]:
        layer.paths = paths
        w, b = merge(layer.base.weight, getattr(layer.base, "bias", None), layer.supports(paths))
        vanilla.weight.data, expected_bias = w.detach(), b
        if expected_bias is not None:
            vanilla.bias.data = expected_bias.detach()
        torch.testing.assert_close(layer(x), vanilla(x), rtol=1e-4, atol=10 * ATOL)


def test_every_path_is_a_slice_of_the_same_stored_tensors() -> None:
    layer = make_layer("linear")
    stored = {name: p.detach() for name, p in layer.named_parameters() if p.requires_grad}
    assert {name: tuple(t.shape) for name, t in stored.items()} == {
        "A_d": (7, 3),
        "A_u": (3, 5),
        "B_d": (7, 3),
        "B_u": (3, 5),
        "C_d": (5, 3),
        "C_u": (3, 1),
        "D": (7,),
        "E": (7,),
    }
    lower = layer.supports(LayerForms.parse("A=lora:2 B=vector C=vector D=scalar E=vector"))
    torch.testing.assert_close(
        lower,
        {
            "A_d": stored["A_d"][:, :2],
            "A_u": stored["A_u"][:2],
            "B": stored["B_d"][:, :1],
            "C": stored["C_d"][:, :1],
            "D": stored["D"][:1],
            "E": stored["E"],
        },
        rtol=0,
        atol=0,
    )
    scalars = layer.supports(LayerForms.parse("A=scalar B=scalar C=lora:3"))
    assert torch.equal(scalars["A"], stored["A_d"][:1, :1])
    assert torch.equal(scalars["B"], stored["B_d"][:1, :1])
    assert torch.equal(scalars["C_u"], stored["C_u"])


def test_scales_act_on_vector_and_scalar_paths_only_and_are_folded_into_what_is_stored() -> None:
    scaled = make_layer("linear", scales={"A": 0.5, "B": 0.25, "C": 4.0})
    plain = make_layer("linear")
    small = LayerForms.parse("A=scalar B=vector C=vector D=vector E=scalar")
    values, unscaled = scaled.supports(small), plain.supports(small)
    for support, factor in {"A": 0.5, "B": 0.25, "C": 4.0, "D": 1.0, "E": 1.0}.items():
        assert torch.equal(values[support], factor * unscaled[support])
    large = LayerForms.parse("A=lora:3 B=lora:2 C=lora:3")
    torch.testing.assert_close(scaled.supports(large), plain.supports(large), rtol=0, atol=0)
    scaled.paths = small
    w, b = merge(scaled.base.weight, scaled.base.bias, values)
    torch.testing.assert_close(scaled.weight, w, rtol=0, atol=ATOL)
    torch.testing.assert_close(scaled.bias, b, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", BASES)
def test_only_tensors_on_the_active_paths_get_a_gradient(name: str) -> None:
    layer = make_layer(name)
    for paths in list(every_paths(layer.shape))[::11]:
        layer.paths = paths
        layer.zero_grad(set_to_none=True)
        x = make_input(name).requires_grad_()
        layer(x).square().sum().backward()
        for parameter_name, parameter in layer.named_parameters():
            support, _, factor = parameter_name.rpartition(".")[2].partition("_")
            if not parameter.requires_grad:
                active = False
            elif factor == "u":
                active = paths[support].kind == "lora"  # type: ignore[index]
            else:
                active = paths[support].kind != "none"  # type: ignore[index]
            assert (parameter.grad is not None) == active, (parameter_name, str(paths))


def test_a_lower_rank_leaves_the_higher_columns_without_a_gradient() -> None:
    layer = make_layer("linear")
    layer.paths = LayerForms.parse("B=lora:2")
    layer(make_input("linear")).square().sum().backward()
    gradient = layer.get_parameter("B_d").grad
    assert gradient is not None
    assert gradient[:, :2].abs().min() > 0
    assert torch.equal(gradient[:, 2], torch.zeros(7))


def test_using_a_layer_changes_neither_its_weights_nor_its_base() -> None:
    layer = make_layer("conv, grouped")
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for paths in list(every_paths(layer.shape))[::13]:
        layer.paths = paths
        layer(make_input("conv, grouped"))
        layer.supports(paths)
    torch.testing.assert_close(dict(layer.named_parameters()), before, rtol=0, atol=0)


def test_a_layer_without_bias_has_no_supports_for_one() -> None:
    names = {n for n, p in make_layer("linear without bias").named_parameters() if p.requires_grad}
    assert names == {"A_d", "A_u", "B_d", "B_u"}


def test_the_first_factors_are_xavier_uniform_and_follow_the_generator() -> None:
    def u(seed: int) -> torch.Tensor:
        layer = GloraLayer(nn.Linear(500, 300), [4], torch.Generator().manual_seed(seed))
        return layer.get_parameter("A_u").detach()

    bound = (6 / (4 + 500)) ** 0.5
    assert 0.98 * bound < u(0).abs().max() <= bound
    assert torch.equal(u(0), u(0))
    assert not torch.equal(u(0), u(1))


def test_a_path_that_the_supernet_does_not_hold_is_refused() -> None:
    layer = make_layer("linear")
    with pytest.raises(ValueError, match=r"A_d must have shape \(7, 4\), got \(7, 3\)"):
        layer.supports(LayerForms.parse("A=lora:4"))
    with pytest.raises(ValueError, match="C cannot be scalar"):
        layer.supports(LayerForms.parse("C=scalar"))


def test_what_cannot_carry_supports_has_no_shape() -> None:
    for module in (nn.ReLU(), nn.Embedding(3, 4), nn.LayerNorm(5, elementwise_affine=False)):
        assert layer_shape(module) is None
    assert layer_shape(nn.LayerNorm((4, 5))) is None
    with pytest.raises(ValueError, match="ReLU cannot carry supports"):
        GloraLayer(nn.ReLU(), RANKS, torch.Generator())


def test_shapes_count_a_kernel_as_one_row_per_output_channel() -> None:
    shape = layer_shape(make_base("conv, grouped"))
    assert shape is not None
    assert (shape.kind, shape.d_out, shape.d_in, shape.bias) == ("conv", 6, 2 * 3 * 3, True)
