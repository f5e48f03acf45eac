"""Adapters: a small network with a non-linearity beside or behind each block's MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..method import AttachedMethod, Blocks, Part, kaiming, xavier

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config import TrainConfig


TENSORS = ("w_down", "b_down", "w_up", "b_up")


def bottleneck(z: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """``w_up act(w_down z + b_down) + b_up``, ``act(x) = x sigmoid(1.702 x)``."""
    hidden = z @ parts["w_down"].T + parts["b_down"]
    hidden = hidden * (1.702 * hidden).sigmoid()
    return hidden @ parts["w_up"].T + parts["b_up"]


class _Bottleneck(AttachedMethod):
    """``w_up act(w_down x + b_down) + b_up`` for each block; ``--ranks`` is the width h."""

    why = "a non-linearity stands between its two layers"
    rank = 8

    def parts(self, blocks: Blocks, config: TrainConfig) -> dict[str, Part]:
        """``w_down (h, width)``, ``b_down (h,)``, ``w_up (width, h)``, ``b_up (width,)``."""
        (hidden,) = config.ranks
        found = {}
        for name in blocks.names:
            found[f"{name}.w_down"] = self._down(hidden, blocks.width)
            found[f"{name}.b_down"] = Part((hidden,))
            found[f"{name}.w_up"] = self._up(blocks.width, hidden)
            found[f"{name}.b_up"] = Part((blocks.width,))
        return found

    def _down(self, hidden: int, width: int) -> Part:
        return xavier(hidden, width)

    def _up(self, width: int, hidden: int) -> Part:
        return xavier(width, hidden)


class Adapter(_Bottleneck):
    """Behind the MLP: its output z becomes ``z + w_up act(w_down z + b_down) + b_up``.

    ``act(x) = x sigmoid(1.702 x)``. As NOAH's authors run it, but without their dropout; both
    weights start Xavier-uniform, so a run does not start from the backbone's own answers.
    """

    name = "adapter"
    summary = "a bottleneck behind each MLP (a comparison: cannot merge)"
    source = "arXiv:1902.00751"

    def attach(
        self, model: nn.Module, blocks: Blocks, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> None:
        """After the drop path of the MLP's branch."""

        def hooked(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, z: Tensor) -> Tensor:
                return z + bottleneck(z, {key: parts[f"{name}.{key}"] for key in TENSORS})

            return hook

        for name in blocks.names:
            model.get_submodule(f"{name}.drop_path2").register_forward_hook(hooked(name))


class AdaptFormer(_Bottleneck):
    """Beside the MLP: ``s (w_up relu(w_down x + b_down) + b_up)``, x the tokens after attention.

    As the official code has it, without a normalisation of x and without its dropout.
    """

    name = "adaptformer"
    summary = "a bottleneck beside each MLP (a comparison: cannot merge)"
    source = "arXiv:2205.13535"
    scale = 0.1

    def _down(self, hidden: int, width: int) -> Part:
        return kaiming(hidden, width)

    def _up(self, width: int, hidden: int) -> Part:
        return Part((width, hidden))

    def attach(
        self, model: nn.Module, blocks: Blocks, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> None:
        """X is what the second norm gets; the sum is taken after the drop path."""
        scale = config.scale
        assert scale is not None

        def hooked(name: str) -> tuple[Any, Any]:
            seen: list[Tensor] = []

            def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                seen[:] = [inputs[0]]

            def add(module: nn.Module, inputs: Any, z: Tensor) -> Tensor:
                hidden = seen.pop() @ parts[f"{name}.w_down"].T + parts[f"{name}.b_down"]
                up = hidden.relu() @ parts[f"{name}.w_up"].T + parts[f"{name}.b_up"]
                return z + scale * up

            return see, add

        for name in blocks.names:
            see, add = hooked(name)
            model.get_submodule(f"{name}.norm2").register_forward_pre_hook(see)
            model.get_submodule(f"{name}.drop_path2").register_forward_hook(add)
