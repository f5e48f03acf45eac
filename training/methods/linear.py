"""Linear probing: the classifier alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glora_deploy.glora.forms import LayerForms, LayerShape, Subnet

from ..method import FoldedMethod, FrozenLayer, Part

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig


class Linear(FoldedMethod):
    """Nothing of the backbone: every path is none."""

    name = "linear"
    summary = "the classifier alone"
    source = "arXiv:2203.12119, section 4.1"
    adapts_layers = False

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """Nothing."""
        return {}

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """None on every layer."""
        return Subnet(dict.fromkeys(layers, LayerForms()))

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """Nothing."""
        return {}
