"""NOAH: prompts, LoRA and adapters together, how much of each in each block by search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..method import Blocks, Part, SizedMethod, kaiming, xavier
from .adapter import TENSORS, bottleneck
from .vpt import prompt_part, put_in, take_out

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config import TrainConfig


class Noah(SizedMethod):
    """In each block: prompts before it, LoRA on ``qkv``, an adapter behind the MLP.

    Each of the three has a size of ``--ranks`` or none, block by block. The original lets one kind
    reach the first 3, 6, 9 or 12 blocks; here any block may go without, which includes that. It
    has no dropout.
    """

    name = "noah"
    summary = "prompts, LoRA and adapters, sized by search (a comparison: cannot merge)"
    source = "arXiv:2206.04673"
    why = "its prompts are further tokens, and its adapters are not linear"
    sizes = (10, 5, 1)
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 500, "lr": 5e-4}

    def parts(self, blocks: Blocks, config: TrainConfig) -> dict[str, Part]:
        """For each block, s the largest size and w the width.

        ``prompts (s, w)``; ``lora_down (s, w)``, ``lora_up (3 w, s)`` from zero; ``w_down (s, w)``,
        ``b_down (s,)``, ``w_up (w, s)``, ``b_up (w,)``.
        """
        size, width = max(config.ranks), blocks.width
        found = {}
        for name in blocks.names:
            found[f"{name}.prompts"] = prompt_part(size, width)
            found[f"{name}.lora_down"] = kaiming(size, width)
            found[f"{name}.lora_up"] = Part((3 * width, size))
            found[f"{name}.w_down"] = xavier(size, width)
            found[f"{name}.b_down"] = Part((size,))
            found[f"{name}.w_up"] = xavier(width, size)
            found[f"{name}.b_up"] = Part((width,))
        return found

    def choices(self, blocks: Blocks, config: TrainConfig) -> dict[str, dict[int, int]]:
        """``BLOCK.prompts``, ``BLOCK.lora``, ``BLOCK.adapter``."""
        width, sizes = blocks.width, sorted(config.ranks, reverse=True)
        of_each = {
            "prompts": {size: size * width for size in sizes},
            "lora": {size: size * 4 * width for size in sizes},
            "adapter": {size: size * (2 * width + 1) + width for size in sizes},
        }
        return {
            f"{name}.{kind}": {**costs, 0: 0}
            for name in blocks.names
            for kind, costs in of_each.items()
        }

    def slice_of(self, part: str) -> tuple[str, int] | None:
        """Each along the axis of its size; ``b_up`` has none."""
        block, _, tensor = part.rpartition(".")
        if tensor == "b_up":
            return None
        kind = {"prompts": "prompts", "lora_down": "lora", "lora_up": "lora"}.get(tensor, "adapter")
        return f"{block}.{kind}", int(tensor in ("lora_up", "w_up"))

    def attach(
        self, model: nn.Module, blocks: Blocks, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> None:
        """Hooks that ask for their parts at each call: what is taken may have changed."""

        def add_lora(name: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
                inner = inputs[0] @ parts[f"{name}.lora_down"].T
                added: Tensor = inner @ parts[f"{name}.lora_up"].T
                return output + added

            return hook

        def add_adapter(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, z: Tensor) -> Tensor:
                taken = {key: parts[f"{name}.{key}"] for key in TENSORS}
                return z + bottleneck(z, taken) if len(taken["w_down"]) else z

            return hook

        for name in blocks.names:
            put_in(model, name, parts, f"{name}.prompts", blocks.n_prefix)
            take_out(model, name, parts, f"{name}.prompts", blocks.n_prefix)
            model.get_submodule(f"{name}.attn.qkv").register_forward_hook(add_lora(name))
            model.get_submodule(f"{name}.drop_path2").register_forward_hook(add_adapter(name))
