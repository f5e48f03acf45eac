from __future__ import annotations

import math
import random

import pytest

from glora_deploy.glora.forms import LayerShape, SearchSpace
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.schedule import (
    draw_always,
    draw_largest_first,
    draw_uniform,
    learning_rate,
    small_form_scales,
)


def make_space() -> SearchSpace:
    shape = LayerShape(kind="linear", d_out=5, d_in=4, bias=True)
    return SearchSpace({"a": shape, "b": shape}, (4, 2))


def test_the_paper_warms_up_for_ten_epochs_and_then_follows_a_cosine_over_all_500() -> None:
    config = TrainConfig.preset("paper")
    for epoch in range(500):
        if epoch < 10:
            expected = 1e-6 + epoch * (5e-4 - 1e-6) / 10
        else:
            expected = 1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + math.cos(math.pi * epoch / 500))
        assert learning_rate(config, epoch) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(config, 500) == pytest.approx(1e-5)


def test_the_paper_has_the_published_values() -> None:
    config = TrainConfig.preset("paper")
    assert (config.epochs, config.batch_size, config.lr) == (500, 64, 5e-4)
    assert (config.weight_decay, config.drop_path, config.warmup_epochs) == (1e-4, 0.1, 10)


def test_uniform_draws_give_each_path_its_share() -> None:
    space, rng = make_space(), random.Random(0)
    draw = draw_uniform(space)
    drawn = [draw(0.0, rng)["a"] for _ in range(4000)]
    for path in space.choices("a", "A"):
        assert sum(path == p.A for p in drawn) / 4000 == pytest.approx(1 / 5, abs=0.02)
    for path in space.choices("a", "D"):
        assert sum(path == p.D for p in drawn) / 4000 == pytest.approx(1 / 3, abs=0.025)


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.8, 0.3), (1.0, 0.3)]
)
def test_short_draws_the_largest_subnet_ever_less_often(progress: float, share: float) -> None:
    space, rng = make_space(), random.Random(0)
    draw = draw_largest_first(space)
    drawn = [draw(progress, rng) == space.largest() for _ in range(3000)]
    assert sum(drawn) / 3000 == pytest.approx(share, abs=0.03)


def test_a_fixed_method_draws_the_same_subnet_always() -> None:
    space = make_space()
    draw = draw_always(space.smallest())
    assert {draw(p / 9, random.Random(p)) for p in range(10)} == {space.smallest()}


def test_scales_shrink_b_with_the_width_and_leave_d_and_e_alone() -> None:
    shape = LayerShape(kind="linear", d_out=5, d_in=400, bias=True)
    assert small_form_scales(shape) == {"A": 0.2, "B": 0.05, "C": 0.2}
