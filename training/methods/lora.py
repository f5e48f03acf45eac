"""LoRA: a product of low rank beside frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glora_deploy.glora.forms import Form, LayerForms, LayerShape, Subnet

from ..method import FoldedMethod, FrozenLayer, Part, xavier

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig


class Lora(FoldedMethod):
    """``w = w0 + B_d @ B_u``; left to itself on the linear layers called qkv, or on all."""

    name = "lora"
    summary = "B of one rank, on the layers called qkv or on those that --include names"
    source = "arXiv:2106.09685"
    possible_kinds = ("linear", "conv")
    rank = 8

    def choose(
        self, layers: Mapping[str, LayerShape], config: TrainConfig
    ) -> Mapping[str, LayerShape]:
        """Linear layers called qkv where there are any; every layer of the other kinds."""
        if config.kinds != ("linear",):
            return layers
        return {n: s for n, s in layers.items() if n.endswith("qkv")} or layers

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """``B_d (d_out, rank)`` from zero, ``B_u (rank, d_in)`` Xavier-uniform."""
        (rank,) = config.ranks
        return {
            f"{name}.{part}": each
            for name, shape in layers.items()
            for part, each in (
                ("B_d", Part((shape.d_out, rank))),
                ("B_u", xavier(rank, shape.d_in)),
            )
        }

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """B of the one rank."""
        (rank,) = config.ranks
        return Subnet(dict.fromkeys(layers, LayerForms(B=Form("lora", rank))))

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """They are B."""
        return {part: parts[f"{layer.name}.{part}"] for part in ("B_d", "B_u")}
