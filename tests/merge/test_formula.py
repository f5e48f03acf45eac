from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from glora_deploy.errors import NonFiniteError
from glora_deploy.glora.forms import LayerForms, LayerShape, SearchSpace
from glora_deploy.glora.layer import GloraLayer
from glora_deploy.glora.supernet_layers import (
    extract_supports,
    find_layers,
    glora_layers,
    inject,
    set_subnet,
)
from glora_deploy.merge.cuda import CudaMergeJob, fused_merge_torch
from glora_deploy.merge.formula import merge, merge_into, split_by_layer
from layers import BASES, every_paths, make_base, make_layer
from merged_networks import float64_merge
from reference import reference_merge
from stored_tasks import make_backbone

NETWORKS = {
    "ViT": ("vit_tiny_patch16_224", {}),
    "Swin, whose reductions have no bias": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16, "window_size": 4},
    ),
    "ConvNeXt, depthwise": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}),
    "ResNet, with BatchNorm": ("test_resnet", {}),
}


def make_supernet(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module, SearchSpace]:
    """Vanilla network, its supernet with random supports on every layer, and the space."""
    architecture, arguments = NETWORKS[name]
    backbone = make_backbone(architecture, seed=seed, **arguments)
    vanilla = backbone.build(5)
    for module in vanilla.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    supernet = copy.deepcopy(vanilla)
    kinds = ("linear", "conv", "affine")
    layers = find_layers(supernet, kinds=kinds, exclude=backbone.classifier)
    generator = torch.Generator().manual_seed(seed)
    space = inject(supernet, layers, ranks=(3, 2), generator=generator)
    for layer in glora_layers(supernet).values():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.05, generator=generator)
    return vanilla, supernet, space


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_merged_in_place_computes_what_its_supernet_does(name: str) -> None:
    vanilla, supernet, space = make_supernet(name)
    x = torch.randn(3, 3, 32, 32)
    in_place = copy.deepcopy(vanilla)
    frozen = {n: t.detach().clone() for n, t in vanilla.state_dict().items()}
    import random

    for subnet in (space.largest(), space.draw(random.Random(1)), space.draw(random.Random(2))):
        set_subnet(supernet, subnet)
        supports = extract_supports(supernet, subnet)
        merge_into(in_place, frozen, supports, space.shapes)
        with torch.no_grad():
            reference = float64_merge(vanilla, supports)(x.double())
            limit = 1e-4 * float(reference.abs().max())  # float32 through a dozen layers
            assert (supernet(x) - reference).abs().max() < limit
            assert (in_place(x) - reference).abs().max() < limit
            assert (vanilla(x) - reference).abs().max() > 10 * limit
    torch.testing.assert_close(vanilla.state_dict(), frozen, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_merged_network_has_the_classes_and_keys_of_the_vanilla_one(name: str) -> None:
    vanilla, supernet, space = make_supernet(name)
    merged = copy.deepcopy(vanilla)
    supports = extract_supports(supernet, space.largest())
    merge_into(merged, vanilla.state_dict(), supports, space.shapes)
    assert [type(m) for m in merged.modules()] == [type(m) for m in vanilla.modules()]
    shapes = {k: (t.shape, t.dtype) for k, t in vanilla.state_dict().items()}
    assert {k: (t.shape, t.dtype) for k, t in merged.state_dict().items()} == shapes


@pytest.mark.parametrize("name", NETWORKS)
def test_merging_nothing_into_a_network_restores_the_vanilla_one(name: str) -> None:
    vanilla, supernet, space = make_supernet(name)
    frozen = vanilla.state_dict()
    target = copy.deepcopy(vanilla)
    merge_into(target, frozen, extract_supports(supernet, space.largest()), space.shapes)
    merge_into(target, frozen, {}, space.shapes)
    torch.testing.assert_close(target.state_dict(), frozen, rtol=0, atol=0)


@pytest.mark.parametrize("name", BASES)
def test_merging_equals_the_slow_reference_on_every_combination_of_paths(name: str) -> None:
    layer = make_layer(name)
    base = layer.base
    bias = getattr(base, "bias", None)
    before = {k: t.clone() for k, t in base.state_dict().items()}
    rows = layer.shape.d_out
    for paths in every_paths(layer.shape):
        supports = layer.supports(paths)
        w, b = merge(base.weight, bias, supports)
        expected_w, expected_b = reference_merge(
            base.weight.detach().reshape(rows, -1).numpy(),
            None if bias is None else bias.detach().numpy(),
            {k: t.numpy() for k, t in supports.items()},
        )
        # Rounded once: the nearest float32 to the float64 result, whatever the order of sums.
        np.testing.assert_allclose(w.detach().reshape(rows, -1), expected_w, rtol=6e-8, atol=0)
        assert (b is None) == (expected_b is None)
        if b is not None:
            np.testing.assert_allclose(b.detach(), expected_b, rtol=6e-8, atol=1e-15)
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)


@st.composite
def linear_layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """A frozen weight and bias, and supports on some combination of paths, of any magnitude."""
    d_out, d_in, rank = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = LayerShape(kind="linear", d_out=d_out, d_in=d_in, bias=draw(st.booleans()))
    chosen = {s: draw(st.sampled_from(shape.choices(s, [rank]))) for s in "ABCDE"}  # type: ignore[arg-type]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def values(size: tuple[int, ...]) -> np.ndarray:
        scale = draw(st.sampled_from((1e-30, 1e-3, 1.0, 1e3, 1e15)))
        return (scale * rng.standard_normal(size)).astype(np.float32)

    w0 = values((d_out, d_in))
    b0 = values((d_out,)) if shape.bias else None
    return w0, b0, {k: values(s) for k, s in LayerForms(**chosen).tensor_shapes(shape).items()}


@given(linear_layers())
@settings(max_examples=150, deadline=None)
def test_merging_equals_the_slow_reference_at_any_magnitude(
    layer: tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]],
) -> None:
    w0, b0, supports = layer
    w, b = merge(
        torch.from_numpy(w0),
        None if b0 is None else torch.from_numpy(b0),
        {k: torch.from_numpy(v) for k, v in supports.items()},
        torch.float64,
    )
    expected_w, expected_b = reference_merge(w0, b0, supports)
    # The formula on absolute values bounds every intermediate sum: large terms may cancel.
    bound_w, bound_b = reference_merge(
        np.abs(w0), None if b0 is None else np.abs(b0), {k: np.abs(v) for k, v in supports.items()}
    )
    np.testing.assert_array_less(np.abs(w.numpy() - expected_w), 1e-14 * bound_w + 1e-300)
    assert (b is None) == (expected_b is None) == (bound_b is None)
    if b is not None:
        np.testing.assert_array_less(np.abs(b.numpy() - expected_b), 1e-14 * bound_b + 1e-300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_is_rounded_once_to_the_dtype_asked_for(dtype: torch.dtype) -> None:
    layer = make_layer("linear")
    supports = layer.supports(LayerForms.parse("A=lora:3 B=lora:2 C=vector D=vector E=vector"))
    wide, wide_bias = merge(layer.base.weight, layer.base.bias, supports, torch.float64)
    w, b = merge(layer.base.weight, layer.base.bias, supports, dtype)
    assert w.dtype == dtype
    assert torch.equal(w, wide.to(dtype))
    assert b is not None
    assert wide_bias is not None
    assert torch.equal(b, wide_bias.to(dtype))


def test_the_prompt_c_reads_the_frozen_weight() -> None:
    w0, b0 = torch.tensor([[1.0, 2.0]]), torch.tensor([0.0])
    supports = {"A": torch.tensor([[9.0]]), "C": torch.tensor([[1.0], [10.0]])}
    w, b = merge(w0, b0, supports)
    assert w.tolist() == [[10.0, 20.0]]
    assert b is not None
    assert b.tolist() == [21.0]


MISFITS = {
    "A a row": ("linear", {"A": (1, 5)}, "A must have shape (7, 1) where w0 is (7, 5), got (1, 5)"),
    "A whole": ("linear", {"A": (7, 5)}, "A must have shape (7, 1) where w0 is (7, 5), got (7, 5)"),
    "A a bare number": (
        "linear",
        {"A": ()},
        "A must have shape (1, 1) where w0 is (7, 5), got ()",
    ),
    "factors swapped": (
        "linear",
        {"B_d": (3, 5), "B_u": (7, 3)},
        "B_d must have shape (7, 5) where w0 is (7, 5), got (3, 5)",
    ),
    "ranks that differ": (
        "linear",
        {"B_d": (7, 3), "B_u": (2, 5)},
        "B_u must have shape (3, 5) where w0 is (7, 5), got (2, 5)",
    ),
    "factor without its other": (
        "linear",
        {"C_d": (5, 3)},
        "C_u must have shape (3, 1) where w0 is (7, 5), got none",
    ),
    "factors of rank zero": (
        "linear",
        {"A_d": (7, 0), "A_u": (0, 5)},
        "A_d must have shape (7, 1) where w0 is (7, 5), got (7, 0)",
    ),
    "lora and vector": (
        "linear",
        {"A": (7, 1), "A_d": (7, 3), "A_u": (3, 5)},
        "A must be absent where w0 is (7, 5), got (7, 1)",
    ),
    "C a number": (
        "linear",
        {"C": (1, 1)},
        "C must have shape (5, 1) where w0 is (7, 5), got (1, 1)",
    ),
    "D a column": (
        "linear",
        {"D": (7, 1)},
        "D must have shape (7,) where w0 is (7, 5), got (7, 1)",
    ),
    "E of another layer": (
        "linear",
        {"E": (5,)},
        "E must have shape (7,) where w0 is (7, 5), got (5,)",
    ),
    "no such support": ("linear", {"F": (1,)}, "F must be absent where w0 is (7, 5), got (1,)"),
    "E without b0": (
        "linear without bias",
        {"E": (7,)},
        "E must be absent where w0 is (7, 5) without b0, got (7,)",
    ),
    "C without b0": (
        "conv, depthwise without bias",
        {"C": (9, 1)},
        "C must be absent where w0 is (4, 9) without b0, got (9, 1)",
    ),
    "A a row of a kernel": (
        "conv, strided, padded, dilated",
        {"A": (1, 24)},
        "A must have shape (6, 1) where w0 is (6, 24), got (1, 24)",
    ),
    "B of all groups": (
        "conv, grouped",
        {"B_d": (6, 3), "B_u": (3, 36)},
        "B_u must have shape (3, 18) where w0 is (6, 18), got (3, 36)",
    ),
    "A flat": ("layer norm", {"A": (5,)}, "A must have shape (5, 1) where w0 is (5,), got (5,)"),
    "lora on an affine": (
        "group norm",
        {"A_d": (4, 3), "A_u": (3, 1)},
        "A_d must be absent where w0 is (4,), got (4, 3)",
    ),
    "C on an affine": (
        "batch norm",
        {"C": (1, 1)},
        "C must be absent where w0 is (4,), got (1, 1)",
    ),
}
"""Layer, names and shapes of its supports, and what is said of them."""


@pytest.mark.parametrize(("name", "shapes", "message"), MISFITS.values(), ids=MISFITS)
def test_supports_that_do_not_fit_the_layer_are_refused(
    name: str, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    base = make_base(name)
    supports = {support: torch.ones(shape) for support, shape in shapes.items()}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        merge(base.weight, getattr(base, "bias", None), supports)


def two_layers() -> nn.Sequential:
    return nn.Sequential(make_base("linear"), nn.ReLU(), nn.Linear(7, 2))


def test_a_merged_weight_that_is_not_finite_is_refused_by_name() -> None:
    network = two_layers()
    supports = {"2.B": torch.tensor([[float("inf")]])}
    with pytest.raises(NonFiniteError, match=r"^2: .* must be finite in torch\.float32"):
        merge_into(copy.deepcopy(network), network.state_dict(), supports, ["0", "2"])
    large = {"0.E": torch.tensor([1e5])}
    half = copy.deepcopy(network).half()
    with pytest.raises(NonFiniteError, match=r"^0: .* must be finite in torch\.float16"):
        merge_into(half, network.state_dict(), large, ["0", "2"])


class SaysCuda(nn.Parameter):
    """A parameter in main memory that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]


def test_layers_on_a_gpu_go_through_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def merge_plainly(jobs: Mapping[str, CudaMergeJob]) -> list[str]:
        asked.append(list(jobs))
        return [
            layer
            for layer, job in jobs.items()
            if not fused_merge_torch(job.w0, job.b0, job.supports, out_w=job.out_w, out_b=job.out_b)
        ]

    monkeypatch.setattr("glora_deploy.merge.formula.fused_merge_layers_cuda", merge_plainly)
    network = nn.Sequential(make_base("conv, grouped"), nn.Flatten(), nn.Linear(6, 2))
    frozen = network.state_dict()
    supports = {
        "0.B_d": torch.randn(6, 3),
        "0.B_u": torch.randn(3, 18),
        "0.E": torch.randn(6),
        "2.A": torch.full((2, 1), 0.5),
    }
    expected, target = copy.deepcopy(network), copy.deepcopy(network)
    merge_into(expected, frozen, supports, ["0", "2"])
    assert asked == [[]]
    target[0].weight = SaysCuda(target[0].weight.data)
    merge_into(target, frozen, supports, ["0", "2"])
    assert asked == [[], ["0"]]
    torch.testing.assert_close(target.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-6)
    inf = {"0.B": torch.tensor([[float("inf")]])}
    with pytest.raises(NonFiniteError, match=r"^0: the merged weight must be finite in torch\."):
        merge_into(target, frozen, inf, ["0", "2"])


def test_a_norm_without_bias_is_merged_in_place_too() -> None:
    network = nn.Sequential(nn.RMSNorm(5))
    supports = {"0.A": torch.full((5, 1), 0.5)}
    target = copy.deepcopy(network)
    merge_into(target, network.state_dict(), supports, ["0"])
    assert torch.equal(target.state_dict()["0.weight"], torch.full((5,), 1.5))


def test_a_support_that_does_not_fit_a_network_is_refused_with_the_name_of_its_layer() -> None:
    supports = {"0.E": torch.ones(7), "2.A": torch.ones(1, 7)}
    with pytest.raises(ValueError, match=r"^2: A must have shape \(2, 1\) .*, got \(1, 7\)$"):
        merge_into(two_layers(), two_layers().state_dict(), supports, ["0", "2"])


def test_supports_of_an_unknown_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^9\.A: no such layer among the 2 to adapt"):
        split_by_layer({"9.A": torch.ones(1, 1)}, ["0", "2"])


@pytest.mark.parametrize(
    "name", ["9.A", "1.A", "A"], ids=["missing", "no weight", "no layer named"]
)
def test_a_network_has_supports_on_its_layers_only(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: no such layer among the 2 to adapt"):
        merge_into(two_layers(), two_layers().state_dict(), {name: torch.ones(1, 1)}, ["0", "2"])


def test_supernet_layers_read_as_merged_weights_inside_attention() -> None:
    # Some attention blocks take qkv.weight themselves instead of calling the layer.
    layer: GloraLayer = make_layer("linear")
    layer.paths = LayerForms.parse("A=vector B=lora:3 C=lora:2 E=vector")
    x: Tensor = torch.randn(4, 5)
    direct = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(direct, layer(x), rtol=0, atol=1e-5)
