"""FacT: changes of all layers as one tensor, of which every layer shares the outer factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from glora_deploy.glora.forms import LayerShape, Subnet
from glora_deploy.glora.shared_factors import (
    SharedKind,
    shared_forms,
    shared_shapes,
    shared_supports,
)

from ..method import FoldedMethod, FrozenLayer, Part, kaiming
from ..setting_error import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig


class _FacT(FoldedMethod):
    """``s * V S U`` for each square slice of a weight; ``glora.shared_factors`` has the formula.

    The original drops out numbers between U and S while it trains; this one drops none.
    """

    source = "arXiv:2212.03145"
    scale = 1.0
    shared: ClassVar[SharedKind]

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """As ``shared_shapes`` names them; V from zero, all others as a new linear layer starts.

        Raises:
            SettingError: If the layers are not made of square slices of one width.
        """
        (rank,) = config.ranks
        try:
            shapes = shared_shapes(self.shared, rank, layers)
        except ValueError as error:
            raise SettingError(f"method {self.name}: {error}. Exclude it.", "exclude") from error
        width = shapes["U"][1]
        if rank > width:
            raise SettingError(
                f"ranks must be at most {width} for --method {self.name}, the width of its slices, "
                f"got {rank}",
                "ranks",
            )
        starts = {"U": kaiming(rank, width).spread, "V": 0.0}
        inner = kaiming(rank, rank).spread
        return {
            name: Part(shape, "uniform", spread=starts.get(name, inner))
            for name, shape in shapes.items()
        }

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """B of the rank."""
        (rank,) = config.ranks
        return Subnet(dict.fromkeys(layers, shared_forms(rank)))

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """The layer's own share, scaled."""
        assert config.scale is not None
        found = shared_supports(self.shared, parts, layer.name, layer.shape)
        return {**found, "B_d": config.scale * found["B_d"]}

    def stored(self, parts: Mapping[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
        """The shared factors; the scale is V's."""
        assert config.scale is not None
        return {**parts, "V": config.scale * parts["V"]}


class FacTTT(_FacT):
    """Tensor-train: each slice has an ``S`` of its own."""

    name = "fact-tt"
    summary = "small cores between two factors that all layers share (tensor-train)"
    rank = 16
    shared = "tensor-train"


class FacTTK(_FacT):
    """Tucker: a slice has only its column of ``P``."""

    name = "fact-tk"
    summary = "one core and two factors that all layers share (Tucker)"
    rank = 32
    shared = "tucker"
