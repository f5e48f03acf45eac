"""Supernet layers with random weights and supports, for the tests of the maths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from glora_deploy.glora.forms import SUPPORTS, LayerForms, LayerShape, Support
from glora_deploy.glora.layer import GloraLayer

BASES = {
    "linear": lambda: nn.Linear(5, 7),
    "linear without bias": lambda: nn.Linear(5, 7, bias=False),
    "conv, strided, padded, dilated": lambda: nn.Conv2d(
        4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)
    ),
    "conv, grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding_mode="reflect", padding=1),
    "conv, depthwise without bias": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "layer norm": lambda: nn.LayerNorm(5),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "rms norm, which has no bias": lambda: nn.RMSNorm(5),
}
"""Layers of every kind; no two of d_out, d_in and the ranks are equal where they may differ."""

RANKS = (3, 2)


def make_base(name: str, seed: int = 0) -> nn.Module:
    """A vanilla layer whose every tensor is random, in evaluation mode."""
    base = BASES[name]()
    generator = torch.Generator().manual_seed(seed)
    for parameter in base.parameters():
        parameter.data.normal_(generator=generator)
    return base.eval()


def make_layer(
    name: str,
    *,
    ranks: Sequence[int] = RANKS,
    scales: Mapping[Support, float] | None = None,
    seed: int = 1,
) -> GloraLayer:
    """A supernet layer with random supports; all paths are none."""
    generator = torch.Generator().manual_seed(seed)
    layer = GloraLayer(make_base(name), ranks, generator, scales)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=generator)
    return layer


def make_input(name: str, seed: int = 2) -> Tensor:
    """A batch this layer takes: ``(3, 5)`` or ``(3, 4, 9, 8)``."""
    generator = torch.Generator().manual_seed(seed)
    takes_vectors = name.startswith(("linear", "layer", "rms"))
    return torch.randn((3, 5) if takes_vectors else (3, 4, 9, 8), generator=generator)


def every_paths(shape: LayerShape, ranks: Sequence[int] = RANKS) -> Iterator[LayerForms]:
    """Every combination of paths that a layer of this shape can take."""
    for chosen in product(*(shape.choices(support, ranks) for support in SUPPORTS)):
        yield LayerForms(*chosen)
