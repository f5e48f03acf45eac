"""Visual prompt tuning: further tokens that every layer attends to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..method import AttachedMethod, Blocks, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config import TrainConfig

_PATCH = 16
"""The bound of the start is that of a patch of so many pixels, as the original has it."""


class _Vpt(AttachedMethod):
    """Prompts stand between the tokens before the image's and the image's own."""

    source = "arXiv:2203.12119"
    why = "its prompts are further tokens that attention sees"
    rank = 5

    def _prompts(self, blocks: Blocks, config: TrainConfig) -> Part:
        (n_prompts,) = config.ranks
        return prompt_part(n_prompts, blocks.width)


class VptShallow(_Vpt):
    """``[cls, P, patches]`` before the first block."""

    name = "vpt-shallow"
    summary = "prompt tokens before the first block (a comparison: cannot merge)"

    def parts(self, blocks: Blocks, config: TrainConfig) -> dict[str, Part]:
        """``P (--ranks, width)``."""
        return {"prompts": self._prompts(blocks, config)}

    def attach(
        self, model: nn.Module, blocks: Blocks, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> None:
        """Put them in before the first block and take them out after the last."""
        first, last = blocks.names[0], blocks.names[-1]
        put_in(model, first, parts, "prompts", blocks.n_prefix)
        take_out(model, last, parts, "prompts", blocks.n_prefix)


class VptDeep(_Vpt):
    """The prompts of each block are its own: those that come out of one are thrown away."""

    name = "vpt-deep"
    summary = "prompt tokens before every block (a comparison: cannot merge)"

    def parts(self, blocks: Blocks, config: TrainConfig) -> dict[str, Part]:
        """``P (--ranks, width)`` for each block."""
        return {f"{name}.prompts": self._prompts(blocks, config) for name in blocks.names}

    def attach(
        self, model: nn.Module, blocks: Blocks, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> None:
        """Put them in before each block and take them out after it."""
        for name in blocks.names:
            put_in(model, name, parts, f"{name}.prompts", blocks.n_prefix)
            take_out(model, name, parts, f"{name}.prompts", blocks.n_prefix)


def prompt_part(n: int, width: int) -> Part:
    """Prompts ``(n, width)``, from the start of a patch embedding."""
    bound = (6 / (3 * _PATCH * _PATCH + width)) ** 0.5
    return Part((n, width), "uniform", spread=bound)


def put_in(model: nn.Module, name: str, parts: Mapping[str, Tensor], prompts: str, at: int) -> None:
    """Have a block see prompts, ``at`` tokens before them; looked up at each call."""
    import torch

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        shown = parts[prompts].expand(len(x), -1, -1)
        return (torch.cat([x[:, :at], shown, x[:, at:]], 1), *rest)

    model.get_submodule(name).register_forward_pre_hook(hook)


def take_out(
    model: nn.Module, name: str, parts: Mapping[str, Tensor], prompts: str, at: int
) -> None:
    """Drop what became of the prompts from a block's output."""
    import torch

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :at], output[:, at + len(parts[prompts]) :]], 1)

    model.get_submodule(name).register_forward_hook(hook)
