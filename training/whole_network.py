"""A network whose own weights are trained, all of them."""

from __future__ import annotations

import torch
from torch import nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.glora.forms import Subnet

from .adapted import Unmergeable, build_frozen
from .config import TrainConfig


class WholeNetwork(Unmergeable[Subnet]):
    """A vanilla network with nothing frozen; it has one subnet, and adapts no layer.

    Args:
        model: Trained in place.
        classifier: As ``Adapted`` has it.
    """

    def __init__(self, model: nn.Module, classifier: tuple[str, ...]) -> None:
        super().__init__(model.requires_grad_(True), classifier)
        self.subnet = Subnet({})

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter, by state-dict name."""
        return dict(self.model.named_parameters())

    def take(self, subnet: Subnet) -> None:
        """There is nothing to choose."""


def build_whole(
    backbone: Backbone, n_classes: int, config: TrainConfig, *, seed: int, device: torch.device
) -> WholeNetwork:
    """A network of which everything is trained.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Drop path.
        seed: Of the classifier.
        device: Where to put it.

    Raises:
        SettingError: As ``build_frozen``.
    """
    model = build_frozen(backbone, n_classes, config, seed=seed)
    return WholeNetwork(model.to(device), backbone.classifier)
