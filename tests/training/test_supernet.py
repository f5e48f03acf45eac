from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from glora_deploy.glora.supernet_layers import glora_layers
from glora_deploy.training.config import Schedule, TrainConfig
from glora_deploy.training.methods import METHODS
from glora_deploy.training.supernet import Supernet, build_supernet
from stored_tasks import make_backbone

CPU = torch.device("cpu")
GLORA = METHODS["glora"]


def make_config(schedule: Schedule = "short", **changes: Any) -> TrainConfig:
    return TrainConfig.preset(schedule, **{"ranks": (3, 2), **changes})


def make_supernet(config: TrainConfig | None = None, seed: int = 0) -> Supernet:
    return build_supernet(make_backbone(), 3, config or make_config(), GLORA, seed=seed, device=CPU)


def test_a_fresh_supernet_computes_what_the_backbone_computes() -> None:
    supernet = make_supernet(make_config(kinds=("linear", "conv", "affine")))
    vanilla = make_backbone().build(3)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for subnet in (supernet.space.smallest(), supernet.space.largest()):
        for name, layer in glora_layers(supernet.model).items():
            layer.paths = subnet[name]
        torch.testing.assert_close(supernet.model(x), vanilla(x), rtol=0, atol=1e-5)


def test_the_seed_decides_on_classifier_and_supports() -> None:
    first, second, other = (make_supernet(seed=s).model.state_dict() for s in (1, 1, 2))
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)
    for name in ("head.weight", "blocks.0.mlp.fc1.B_u"):
        assert not torch.equal(first[name], other[name])


def test_the_classifier_is_trained_whole_and_is_not_in_the_space() -> None:
    supernet = make_supernet()
    assert set(supernet.head()) == {"head.weight", "head.bias"}
    assert "head" not in supernet.space.shapes
    assert isinstance(supernet.model.get_submodule("head"), nn.Linear)


def test_short_scales_the_small_forms_and_the_paper_does_not() -> None:
    name = "blocks.0.mlp.fc2"
    short, paper = make_supernet(make_config()), make_supernet(make_config("paper"))
    assert glora_layers(short.model)[name].scales["B"] == 192**-0.5
    assert set(glora_layers(paper.model)[name].scales.values()) == {1.0}


def test_drop_path_is_refused_where_the_architecture_knows_none() -> None:
    with pytest.raises(
        ValueError, match=r"drop_path_rate.* If it knows no drop path, give --drop-path 0"
    ):
        build_supernet(
            make_backbone("dla46_c"),
            3,
            make_config(drop_path=0.1),
            GLORA,
            seed=0,
            device=CPU,
        )
