"""BitFit: every bias of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glora_deploy.glora.forms import VECTOR, LayerForms, LayerShape, Subnet

from ..method import FoldedMethod, FrozenLayer, Part

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig


class BitFit(FoldedMethod):
    """``b = b0 + E`` on every layer that has a bias: linear, convolution and norm."""

    name = "bitfit"
    summary = "every bias"
    source = "arXiv:2106.10199"
    kinds = possible_kinds = ("linear", "conv", "affine")

    def can_adapt(self, shape: LayerShape) -> bool:
        """A layer without a bias has none to train."""
        return shape.bias

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """What is added to each bias, ``(d_out,)``, from zero."""
        return {f"{name}.E": Part((shape.d_out,)) for name, shape in layers.items()}

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """E a vector."""
        return Subnet(dict.fromkeys(layers, LayerForms(E=VECTOR)))

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """It is E."""
        return {"E": parts[f"{layer.name}.E"]}
