"""SSF: scale and shift what every operation of the backbone gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glora_deploy.glora.forms import NONE, VECTOR, LayerForms, LayerShape, Subnet

from ..method import FoldedMethod, FrozenLayer, Part, normal

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig


class Ssf(FoldedMethod):
    """``y = g * (w0 x + b0) + b`` after every linear layer, convolution and norm.

    A layer without a bias is scaled alone: a shift would need a bias that the architecture lacks.
    """

    name = "ssf"
    summary = "a scale and a shift of what each layer gives"
    source = "arXiv:2210.08823"
    kinds = possible_kinds = ("linear", "conv", "affine")

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """``g (d_out,)`` around 1 and ``b (d_out,)`` around 0, both of deviation 0.02."""
        found = {}
        for name, shape in layers.items():
            found[f"{name}.scale"] = normal(shape.d_out, 1.0, 0.02)
            if shape.bias:
                found[f"{name}.shift"] = normal(shape.d_out, 0.0, 0.02)
        return found

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """A a vector; E one where there is a bias."""
        return Subnet(
            {
                name: LayerForms(A=VECTOR, E=VECTOR if shape.bias else NONE)
                for name, shape in layers.items()
            }
        )

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """``A = g - 1`` and ``E = (g - 1) * b0 + b``, so that no D need be stored."""
        change = parts[f"{layer.name}.scale"] - 1
        supports = {"A": change[:, None]}
        if layer.bias is not None:
            supports["E"] = change * layer.bias + parts[f"{layer.name}.shift"]
        return supports
