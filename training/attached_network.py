"""A network with something in it that no vanilla network can take over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.glora.forms import Subnet

from .adapted import Unmergeable, build_frozen, generator_of
from .config import TrainConfig
from .folded_network import started
from .method import AttachedMethod, Blocks
from .search import Candidate
from .setting_error import SettingError


class HookedNetwork(Unmergeable[Candidate]):
    """A frozen network and what an attached method trains in it.

    Args:
        model: Frozen but for its classifier; gets the method's hooks.
        classifier: As ``Adapted`` has it.
        method: What is attached.
        config: As the method takes it.
        generator: Draws what the tensors start from.

    Raises:
        SettingError: If it has no blocks that the method could be attached to.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: tuple[str, ...],
        method: AttachedMethod,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, classifier)
        self.blocks = blocks_of(model, method)
        device = next(model.parameters()).device
        self._parts = {
            name: nn.Parameter(started(part, generator).to(device))
            for name, part in method.parts(self.blocks, config).items()
        }
        method.attach(model, self.blocks, self._seen_by_hooks(), config)

    def _seen_by_hooks(self) -> Mapping[str, Tensor]:
        """What a hook gets when it asks for a tensor by name."""
        return self._parts

    def trainable(self) -> dict[str, nn.Parameter]:
        """The method's tensors and the classifier, by name."""
        own = {k: v for k, v in self.model.named_parameters() if v.requires_grad}
        return {**self._parts, **own}


class AttachedNetwork(HookedNetwork[Subnet]):
    """All of what an attached method trains; there is nothing to choose."""

    subnet = Subnet({})

    def take(self, subnet: Subnet) -> None:
        """There is nothing to choose."""


def build_attached(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: AttachedMethod,
    *,
    seed: int,
    device: torch.device,
) -> AttachedNetwork:
    """A network that an attached method is trained in.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Width and drop path.
        method: What is attached.
        seed: Of the classifier and the method's tensors.
        device: Where to put it.

    Raises:
        SettingError: As ``build_frozen`` and ``AttachedNetwork``.
    """
    model = build_frozen(backbone, n_classes, config, seed=seed).to(device)
    return AttachedNetwork(model, backbone.classifier, method, config, generator_of(seed))


def blocks_of(model: Any, method: AttachedMethod) -> Blocks:
    """The blocks of a vision transformer of timm's.

    Raises:
        SettingError: If it is none.
    """
    blocks = getattr(model, "blocks", None)
    needed = ("attn", "norm2", "mlp", "drop_path2")
    if not isinstance(blocks, nn.Sequential) or not all(
        hasattr(block, name) for block in blocks for name in needed
    ):
        raise SettingError(
            f"method {method.name} needs a backbone of attention blocks, such as a ViT; "
            f"{type(model).__name__} is none",
            "method",
        )
    names = tuple(f"blocks.{index}" for index in range(len(blocks)))
    return Blocks(names, int(model.embed_dim), int(model.num_prefix_tokens))
