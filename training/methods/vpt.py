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
        bound = (6 / (3 * _PATCH * _PATCH + blocks.width)) ** 0.5
        return Part((n_prompts, blocks.width), "uniform", spread=bound)


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
        prompts = parts["prompts"]
        first, last = blocks.names[0], blocks.names[-1]
        _before(model, first, lambda x: _inserted(x, prompts, blocks.n_prefix))
        _after(model, last, lambda x: _removed(x, len(prompts), blocks.n_prefix))


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
            prompts = parts[f"{name}.prompts"]
            _before(model, name, lambda x, p=prompts: _inserted(x, p, blocks.n_prefix))
            _after(model, name, lambda x, p=prompts: _removed(x, len(p), blocks.n_prefix))


def _inserted(x: Tensor, prompts: Tensor, at: int) -> Tensor:
    import torch

    return torch.cat([x[:, :at], prompts.expand(len(x), -1, -1), x[:, at:]], 1)


def _removed(x: Tensor, n: int, at: int) -> Tensor:
    import torch

    return torch.cat([x[:, :at], x[:, at + n :]], 1)


def _before(model: nn.Module, name: str, change: Any) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(inputs[0]), *inputs[1:])

    model.get_submodule(name).register_forward_pre_hook(hook)


def _after(model: nn.Module, name: str, change: Any) -> None:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        changed: Tensor = change(output)
        return changed

    model.get_submodule(name).register_forward_hook(hook)
