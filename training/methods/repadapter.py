"""RepAdapter: a linear bottleneck before the layers that read a block's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glora_deploy.glora.forms import NONE, VECTOR, Form, LayerForms, LayerShape, Subnet

from ..method import FoldedMethod, FrozenLayer, Part, xavier
from ..setting_error import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import TrainConfig

N_GROUPS = 2


class RepAdapter(FoldedMethod):
    """``x + s * (w_up (w_down x + b_down) + b_up)`` before qkv and fc1.

    ``--ranks`` is the width h of the bottleneck.

    ``w_up`` is block-diagonal: of two groups, each sends one half of the bottleneck to one half of
    the channels. The original drops out hidden numbers while it trains; this one drops none.
    """

    name = "repadapter"
    summary = "a linear bottleneck before qkv and fc1"
    source = "arXiv:2302.08106"
    rank = 8
    scale = 1.0

    def can_adapt(self, shape: LayerShape) -> bool:
        """A layer without a bias could not take what the bottleneck's biases give."""
        return shape.bias and shape.d_in % N_GROUPS == 0

    def choose(
        self, layers: Mapping[str, LayerShape], config: TrainConfig
    ) -> Mapping[str, LayerShape]:
        """The first layers of attention and of the MLP where there are any, otherwise all."""
        return {n: s for n, s in layers.items() if n.endswith(("qkv", "fc1"))} or layers

    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """``w_down (h, d_in)``, ``b_down (h,)``, ``b_up (d_in,)``, ``w_up (2, d_in/2, h/2)``."""
        (width,) = config.ranks
        if width % N_GROUPS:
            raise SettingError(
                f"ranks must be even for --method {self.name}, which has {N_GROUPS} groups, "
                f"got {width}",
                "ranks",
            )
        found = {}
        for name, shape in layers.items():
            found[f"{name}.w_down"] = xavier(width, shape.d_in)
            found[f"{name}.b_down"] = Part((width,))
            found[f"{name}.w_up"] = Part((N_GROUPS, shape.d_in // N_GROUPS, width // N_GROUPS))
            found[f"{name}.b_up"] = Part((shape.d_in,))
        return found

    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """B of the bottleneck's width, C a vector."""
        (width,) = config.ranks
        paths = LayerForms(A=NONE, B=Form("lora", width), C=VECTOR)
        return Subnet(dict.fromkeys(layers, paths))

    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """``B = (s w0 w_up) w_down`` and ``C = s (w_up b_down + b_up)``."""
        assert config.scale is not None
        (width,) = config.ranks
        d_out, d_in = layer.shape.d_out, layer.shape.d_in
        blocks = parts[f"{layer.name}.w_up"]
        hidden = parts[f"{layer.name}.b_down"].reshape(N_GROUPS, -1, 1)
        by_group = layer.weight.reshape(d_out, N_GROUPS, -1).transpose(0, 1) @ blocks
        shift = (blocks @ hidden).reshape(d_in, 1) + parts[f"{layer.name}.b_up"][:, None]
        return {
            "B_d": config.scale * by_group.transpose(0, 1).reshape(d_out, width),
            "B_u": parts[f"{layer.name}.w_down"],
            "C": config.scale * shift,
        }
