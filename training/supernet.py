"""The supernet of a backbone: what is trained, and what a subnet is taken from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from glora_deploy.backbone import Backbone
from glora_deploy.inject import find_layers, inject
from glora_deploy.paths import SearchSpace

from .config import TrainConfig
from .schedule import small_form_scales


@dataclass(frozen=True, slots=True)
class Supernet:
    """A backbone with supports, and the space of its subnets."""

    model: nn.Module
    space: SearchSpace
    classifier: tuple[str, ...]
    """Dotted names of the modules that are trained whole."""

    def head(self) -> dict[str, Tensor]:
        """The classifier's tensors by state-dict name."""
        prefixes = tuple(f"{name}." for name in self.classifier)
        return {k: v for k, v in self.model.state_dict().items() if k.startswith(prefixes)}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Supports and classifier, by name, in module order."""
        return {k: v for k, v in self.model.named_parameters() if v.requires_grad}


def build_supernet(
    backbone: Backbone, n_classes: int, config: TrainConfig, *, seed: int, device: torch.device
) -> Supernet:
    """Put supports on every layer that the configuration names; all paths start as no-ops.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Kinds, patterns, ranks, drop path; the schedule decides on the scales.
        seed: Of the classifier and the supports.
        device: Where to put it.

    Raises:
        ValueError: If no layer matches, or the architecture knows no drop path and the
            configuration asks for it.
    """
    if config.drop_path:
        arguments = {**backbone.model_args, "drop_path_rate": config.drop_path}
        backbone = replace(backbone, model_args=arguments)
    try:
        model = backbone.build(n_classes, seed=seed)
    except ValueError as error:
        raise ValueError(f"{error}. If it knows no drop path, give --drop-path 0.") from error
    layers = find_layers(
        model,
        kinds=config.kinds,
        include=config.include,
        exclude=(*config.exclude, *backbone.classifier),
    )
    scales = {name: small_form_scales(shape) for name, shape in layers.items()}
    space = inject(
        model,
        layers,
        ranks=config.ranks,
        generator=torch.Generator().manual_seed(seed),
        scales=scales if config.schedule == "short" else None,
    )
    for name in backbone.classifier:
        model.get_submodule(name).requires_grad_(True)
    return Supernet(model.to(device), space, backbone.classifier)
