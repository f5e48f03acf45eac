"""The supernet of a backbone: what is trained, and what a subnet is taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.glora.forms import LayerShape, SearchSpace, Subnet
from glora_deploy.glora.supernet_layers import extract_supports, glora_layers, inject, set_subnet

from .adapted import Adapted, build_to_adapt, generator_of
from .config import TrainConfig
from .method import Method
from .schedule import small_form_scales
from .search import SubnetGenes


class Supernet(Adapted[Subnet]):
    """A backbone with supports, and the space of its subnets.

    Args:
        model: With ``GloraLayer`` in the place of every layer of the space.
        space: Its subnets.
        classifier: As ``Adapted`` has it.
    """

    def __init__(self, model: nn.Module, space: SearchSpace, classifier: tuple[str, ...]) -> None:
        super().__init__(model, space.shapes, classifier)
        self.space = space

    @property
    def genes(self) -> SubnetGenes:
        """What a search chooses from."""
        return SubnetGenes(self.space)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Supports and classifier, by name, in module order."""
        return {k: v for k, v in self.model.named_parameters() if v.requires_grad}

    def take(self, subnet: Subnet) -> None:
        """As ``Adapted.take``."""
        set_subnet(self.model, subnet)

    def supports(self, subnet: Subnet) -> dict[str, Tensor]:
        """As ``Adapted.supports``."""
        return extract_supports(self.model, subnet)

    def frozen(self) -> dict[str, Tensor]:
        """As ``Adapted.frozen``."""
        return {
            f"{name}.{key}": tensor
            for name, layer in glora_layers(self.model).items()
            for key, tensor in layer.base.state_dict().items()
        }


def build_supernet(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: Method,
    *,
    seed: int,
    device: torch.device,
) -> Supernet:
    """Put supports on every layer that the configuration names; all paths start as no-ops.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Kinds, patterns, ranks, drop path; the schedule decides on the scales.
        method: As for ``choose_layers``.
        seed: Of the classifier and the supports.
        device: Where to put it.

    Raises:
        SettingError: As ``build_to_adapt``.
    """
    model, layers = build_to_adapt(backbone, n_classes, config, method, seed=seed)
    return supernet_of(model.to(device), layers, backbone.classifier, config, seed=seed)


def supernet_of(
    model: nn.Module,
    layers: Mapping[str, LayerShape],
    classifier: tuple[str, ...],
    config: TrainConfig,
    *,
    seed: int,
) -> Supernet:
    """Put supports on the named layers of any network; all paths start as no-ops.

    Args:
        model: Vanilla; becomes the supernet, frozen but for its classifier.
        layers: As ``choose_layers`` finds them.
        classifier: Dotted names of the modules that are trained whole.
        config: Ranks; the schedule decides on the scales.
        seed: Of the supports.
    """
    device = next(model.parameters()).device
    scales = {name: small_form_scales(shape) for name, shape in layers.items()}
    space = inject(
        model,
        layers,
        ranks=config.ranks,
        generator=generator_of(seed),
        scales=scales if config.schedule == "short" else None,
    )
    if config.servable_mixed:
        space = replace(space, lora_a=False)
    for name in classifier:  # injecting has frozen all that was there before
        model.get_submodule(name).requires_grad_(True)
    return Supernet(model.to(device), space, classifier)
