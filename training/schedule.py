"""When to do what: the learning rate, and which subnet a step trains.

``paper`` is arXiv:2306.07967 with the authors' code: linear warm-up, then a cosine over *all*
epochs, set once per epoch; every step trains a uniform random subnet. Their code sets the rate of
epoch e to lr(e - 1), so that two epochs run at the warm-up rate; here epoch e runs at lr(e).

``short`` is for tens of epochs instead of hundreds. The same curve is followed step by step, the
vector and scalar paths are scaled so that an optimiser step moves the layer's output about as
much as it does on a lora path, and the largest subnet is trained with a probability that falls
from 1 to ``LARGEST_SHARE``: uniform sampling alone leaves the large forms untrained. The search
comes before the end of the curve, and what is left of it trains the chosen subnet alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from glora_deploy.glora.forms import LayerShape, Support

from .config import TrainConfig

Draw = Callable[[float, random.Random], Any]
"""The subnet of a step, from the progress of the training (0 to 1) and a generator."""

Drawn = TypeVar("Drawn", covariant=True)


class Space(Protocol[Drawn]):
    """What subnets there are."""

    def draw(self, rng: random.Random) -> Drawn:
        """One of them at random."""

    def largest(self) -> Drawn:
        """The one that has all of everything."""


LARGEST_SHARE = 0.3
SMALL_FORM_SCALE = 0.2


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate at a time counted in epochs; whole epochs for ``paper``.

    >>> config = TrainConfig.preset("paper")
    >>> [round(learning_rate(config, epoch), 8) for epoch in (0, 5, 10, 500)]
    [1e-06, 0.0002505, 0.00049952, 1e-05]
    """
    c = config
    if epoch < c.warmup_epochs:
        return c.warmup_lr + epoch * (c.lr - c.warmup_lr) / c.warmup_epochs
    return c.final_lr + 0.5 * (c.lr - c.final_lr) * (1 + math.cos(math.pi * epoch / c.epochs))


def draw_uniform(space: Space[Any]) -> Draw:
    """A uniform random subnet at every step, as the authors do."""
    return lambda progress, rng: space.draw(rng)


def draw_largest_first(space: Space[Any]) -> Draw:
    """The largest subnet with probability max(LARGEST_SHARE, 1 - progress), else a random one."""
    largest = space.largest()

    def draw(progress: float, rng: random.Random) -> Any:
        share = max(LARGEST_SHARE, 1 - progress)
        return largest if rng.random() < share else space.draw(rng)

    return draw


def draw_always(subnet: Any) -> Draw:
    """One subnet at every step: a fixed method such as LoRA."""
    return lambda progress, rng: subnet


def small_form_scales(shape: LayerShape) -> Mapping[Support, float]:
    """What ``short`` multiplies the vector and scalar paths of a layer by.

    A vector or scalar of B adds a multiple of sum(x), which grows with the square root of d_in
    for inputs of mean zero.
    """
    return {"A": SMALL_FORM_SCALE, "B": shape.d_in**-0.5, "C": SMALL_FORM_SCALE}
