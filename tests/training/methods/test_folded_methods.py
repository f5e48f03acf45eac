"""Methods that fold into a delta: their counts, their formulas, their merges."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from glora_deploy.backbones.load import Backbone, outline
from glora_deploy.glora.forms import SearchSpace
from glora_deploy.training.adapted import require_layers
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.evaluate import MergedNetwork
from glora_deploy.training.folded_network import FoldedNetwork, build_folded
from glora_deploy.training.method import FoldedMethod, Method
from glora_deploy.training.methods import METHODS
from glora_deploy.training.setting_error import SettingError
from method_formulas import ORIGINALS
from stored_tasks import make_backbone

CPU = torch.device("cpu")
FOLDED = sorted(name for name, each in METHODS.items() if isinstance(each, FoldedMethod))


def config_of(method: Method, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"kinds": method.kinds, "scale": method.scale}
    if method.rank is not None:
        values["ranks"] = (method.rank,)
    return TrainConfig.preset("short", **{**values, **changes})


def folded(name: str) -> FoldedMethod:
    method = METHODS[name]
    assert isinstance(method, FoldedMethod)
    return method


def adapt(name: str, backbone: Backbone, **changes: Any) -> FoldedNetwork:
    """A network of random supports, the classifier's numbers random too."""
    method = folded(name)
    small = {} if method.rank is None else {"ranks": (4,)}
    config = config_of(method, **{**small, **changes})
    adapted = build_folded(backbone, 3, config, method, seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    adapted.model.eval()
    return adapted


def pictures(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_every_folded_method_has_its_formula_here() -> None:
    assert sorted(ORIGINALS) == FOLDED


@pytest.mark.parametrize(
    ("name", "rank", "n_parameters"),
    [
        ("linear", None, 0),
        ("bitfit", None, 102_912),
        ("lora", 8, 294_912),
        ("ssf", None, 205_824),
        ("repadapter", 8, 239_808),
        ("fact-tt", 4, 8_448),
        ("fact-tt", 8, 21_504),
        ("fact-tt", 16, 61_440),
        ("fact-tk", 8, 13_952),
        ("fact-tk", 16, 30_976),
        ("fact-tk", 32, 86_528),
    ],
)
def test_a_vit_b_has_as_many_numbers_to_train_as_its_authors_state(
    name: str, rank: int | None, n_parameters: int
) -> None:
    method = folded(name)
    config = config_of(method, **({} if rank is None else {"ranks": (rank,)}))
    layers = require_layers(outline("vit_base_patch16_224"), config, method)
    assert method.n_trained(layers, config) == n_parameters


def test_swin_has_its_99_layers_and_those_without_a_bias_take_no_c_d_or_e() -> None:
    config = TrainConfig.preset("paper", ranks=(4,))
    layers = require_layers(outline("swin_base_patch4_window7_224"), config, METHODS["glora"])
    without = [name for name, shape in layers.items() if not shape.bias]
    assert (len(layers), len(without)) == (99, 3)
    assert all(name.endswith("reduction") for name in without)
    largest = SearchSpace(layers, (4,)).largest()
    assert all(str(largest[name][support]) == "none" for name in without for support in "CDE")


@pytest.mark.parametrize(("rank", "mean"), [(8, 0.880), (4, 0.499), (2, 0.309)])
def test_the_papers_three_sizes_have_the_mean_of_a_uniform_draw(rank: int, mean: float) -> None:
    config = TrainConfig.preset("paper", ranks=(rank,))
    layers = require_layers(outline("vit_base_patch16_224"), config, METHODS["glora"])
    assert len(layers) == 48
    space, rng = SearchSpace(layers, (rank,)), random.Random(0)
    drawn = [space.draw(rng).n_parameters(layers) for _ in range(300)]
    assert sum(drawn) / len(drawn) / 1e6 == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("name", FOLDED)
def test_a_network_computes_what_the_method_states(name: str) -> None:
    backbone = make_backbone()
    scale = None if METHODS[name].scale is None else 0.5
    adapted = adapt(name, backbone, scale=scale)
    model = backbone.build(3)
    model.load_state_dict(adapted.head(), strict=False)
    parts = {k: v.detach() for k, v in adapted.trainable().items() if k not in adapted.head()}
    with torch.no_grad():
        ORIGINALS[name](model, parts, scale or 1.0)
        expected = model.eval()(pictures())
        found = adapted.model(pictures())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert parts or name == "linear"


@pytest.mark.parametrize("name", FOLDED)
def test_what_it_merges_into_computes_the_same(name: str) -> None:
    backbone = make_backbone()
    assert_merges(adapt(name, backbone), backbone.build(3))


@pytest.mark.parametrize("name", ["bitfit", "ssf", "lora"])
def test_convolutions_and_their_norms_merge_too(name: str) -> None:
    backbone = make_backbone("test_resnet")
    kinds = ("conv",) if name == "lora" else METHODS[name].kinds
    adapted = adapt(name, backbone, kinds=kinds)
    assert_merges(adapted, backbone.build(3))


@pytest.mark.parametrize("name", ["bitfit", "ssf", "repadapter"])
def test_layers_without_a_bias_stay_without_one(name: str) -> None:
    arguments = {"embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
    backbone = make_backbone("swin_tiny_patch4_window7_224", **arguments)
    adapted = adapt(name, backbone)
    reduction = (
        next(n for n in adapted.frozen() if "reduction.weight" in n) if name == "ssf" else ""
    )
    assert name != "ssf" or reduction.replace("weight", "bias") not in adapted.frozen()
    assert_merges(adapted, backbone.build(3))


def assert_merges(adapted: FoldedNetwork, vanilla: nn.Module) -> None:
    merged = MergedNetwork(adapted, vanilla)
    before = vanilla.eval()(pictures())
    with torch.no_grad():
        expected = adapted.model(pictures())
        found = merged.become(adapted.subnet)(pictures())
    assert not torch.allclose(before, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_its_tensors_learn() -> None:
    for name in FOLDED:
        adapted = adapt(name, make_backbone())
        adapted.model(pictures()).square().sum().backward()
        still = [k for k, v in adapted.trainable().items() if v.grad is None or not v.grad.any()]
        assert still == [], name


def test_the_start_follows_from_the_seed_and_is_the_backbone_where_the_method_starts_there() -> (
    None
):
    backbone = make_backbone()
    for name in FOLDED:
        method = folded(name)
        config = config_of(method)
        first, again, other = (
            build_folded(backbone, 3, config, method, seed=seed, device=CPU) for seed in (5, 5, 6)
        )
        for key, tensor in first.trainable().items():
            assert torch.equal(tensor, again.trainable()[key])
        drawn = [
            k for k, v in first.trainable().items() if not torch.equal(v, other.trainable()[k])
        ]
        assert drawn, name
        if name != "ssf":  # its scales and shifts start around those of the backbone
            vanilla = backbone.build(3, seed=5).eval()
            found = first.model.eval()(pictures())
            torch.testing.assert_close(found, vanilla(pictures()), rtol=1e-5, atol=1e-5)


def test_slices_of_two_widths_are_refused_by_name() -> None:
    arguments = {"embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
    backbone = make_backbone("swin_tiny_patch4_window7_224", **arguments)
    with pytest.raises(SettingError, match=r"slices \(32, 32\), got layers\.1"):
        adapt("fact-tt", backbone)


def test_a_rank_beyond_the_slices_is_refused_before_it_takes_memory() -> None:
    config = config_of(METHODS["fact-tk"], ranks=(99_999,))
    layers = require_layers(outline("vit_tiny_patch16_224"), config, METHODS["fact-tk"])
    with pytest.raises(SettingError, match="ranks must be at most 192 for --method fact-tk"):
        folded("fact-tk").parts(layers, config)


def test_an_odd_bottleneck_cannot_have_two_groups() -> None:
    with pytest.raises(SettingError, match="ranks must be even for --method repadapter"):
        adapt("repadapter", make_backbone(), ranks=(3,))
