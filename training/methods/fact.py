"""FacT: changes of all layers as one tensor, of which every layer shares the outer factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from glora_deploy.glora.forms import Form, LayerForms, LayerShape, Subnet

from ..method import FoldedMethod, FrozenLayer, Part, kaiming, xavier
from ..setting_error import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig


class _FacT(FoldedMethod):
    """``s * V S U`` for each square slice ``(d, d)`` of a weight, d being the network's width.

    A fused qkv is three slices, the MLP's layers four each. ``U (rank, d)`` and ``V (d, rank)`` are
    one for all layers; what each slice has of its own is the small ``S (rank, rank)``. The
    original drops out numbers between U and S while it trains; this one drops none.
    """

    source = "arXiv:2212.03145"
    scale = 1.0

    @abstractmethod
    def _inner_parts(self, n_slices: Mapping[str, int], rank: int) -> dict[str, Part]:
        """What gives the ``S`` of each layer's slices."""

    @abstractmethod
    def _inner(self, layer: str, parts: Mapping[str, Tensor], rank: int) -> Tensor:
        """``S`` of a layer's slices, ``(n, rank, rank)``."""

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """``U (rank, d)``, ``V (d, rank)`` from zero, and the inner parts."""
        (rank,) = config.ranks
        width = self._width(layers)
        slices = {name: max(s.d_out, s.d_in) // width for name, s in layers.items()}
        return {
            "U": kaiming(rank, width),
            "V": Part((width, rank)),
            **self._inner_parts(slices, rank),
        }

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """B of the rank: what slices beside or below each other share is one of its factors."""
        (rank,) = config.ranks
        return Subnet(dict.fromkeys(layers, LayerForms(B=Form("lora", rank))))

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """Slices below each other share U, slices beside each other share V."""
        assert config.scale is not None
        (rank,) = config.ranks
        inner = self._inner(layer.name, parts, rank)
        if layer.shape.d_out >= layer.shape.d_in:
            down = (parts["V"] @ inner).reshape(layer.shape.d_out, rank)
            return {"B_d": config.scale * down, "B_u": parts["U"]}
        up = (inner @ parts["U"]).transpose(0, 1).reshape(rank, layer.shape.d_in)
        return {"B_d": config.scale * parts["V"], "B_u": up}

    def _width(self, layers: Mapping[str, LayerShape]) -> int:
        width = min(min(shape.d_out, shape.d_in) for shape in layers.values())
        for name, shape in layers.items():
            if min(shape.d_out, shape.d_in) != width or max(shape.d_out, shape.d_in) % width:
                raise SettingError(
                    f"method {self.name} shares its factors among layers that are made of slices "
                    f"({width}, {width}), got {name} of ({shape.d_out}, {shape.d_in}). Leave such "
                    "layers out.",
                    "exclude",
                )
        return width


class FacTTT(_FacT):
    """Tensor-train: each slice has an ``S`` of its own."""

    name = "fact-tt"
    summary = "small cores between two factors that all layers share (tensor-train)"
    rank = 16

    def _inner_parts(self, n_slices: Mapping[str, int], rank: int) -> dict[str, Part]:
        bound = kaiming(rank, rank).spread
        return {
            f"{name}.S": Part((n, rank, rank), "uniform", spread=bound)
            for name, n in n_slices.items()
        }

    def _inner(self, layer: str, parts: Mapping[str, Tensor], rank: int) -> Tensor:
        return parts[f"{layer}.S"]


class FacTTK(_FacT):
    """Tucker: ``S = sum_k core[:, :, k] P[k]``, so that a slice has only its column of ``P``."""

    name = "fact-tk"
    summary = "one core and two factors that all layers share (Tucker)"
    rank = 32

    def _inner_parts(self, n_slices: Mapping[str, int], rank: int) -> dict[str, Part]:
        total = sum(n_slices.values())
        return {
            "core": Part((rank, rank, rank), "uniform", spread=kaiming(rank, rank).spread),
            **{
                f"{name}.P": Part((rank, n), "uniform", spread=xavier(rank, total).spread)
                for name, n in n_slices.items()
            },
        }

    def _inner(self, layer: str, parts: Mapping[str, Tensor], rank: int) -> Tensor:
        own = parts[f"{layer}.P"]
        mixed = parts["core"].reshape(rank * rank, rank) @ own
        return mixed.transpose(0, 1).reshape(own.shape[1], rank, rank)
