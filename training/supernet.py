"""The supernet of a backbone: what is trained, and what a subnet is taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone, Outline
from glora_deploy.glora.forms import SearchSpace
from glora_deploy.glora.supernet_layers import inject

from .chosen_layers import choose_layers
from .config import Method, SettingError, TrainConfig
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
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
    method: Method = "glora",
    strict: bool = True,
) -> Supernet:
    """Put supports on every layer that the configuration names; all paths start as no-ops.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Kinds, patterns, ranks, drop path; the schedule decides on the scales.
        seed: Of the classifier and the supports.
        device: Where to put it.
        method: As for ``choose_layers``.
        strict: As for ``choose_layers``.

    Raises:
        SettingError: If no layer matches, or the architecture knows no drop path and the
            configuration asks for it.
    """
    arguments = _with_drop_path(backbone.model_args, config)
    with _drop_path_refused(config):
        model = replace(backbone, model_args=arguments).build(n_classes, seed=seed)
    layers = choose_layers(model, config, backbone.classifier, method=method, strict=strict)
    scales = {name: small_form_scales(shape) for name, shape in layers.items()}
    space = inject(
        model,
        layers,
        ranks=config.ranks,
        generator=torch.Generator().manual_seed(seed),
        scales=scales if config.schedule == "short" else None,
    )
    if config.servable_mixed:
        space = replace(space, lora_a=False)
    for name in backbone.classifier:
        model.get_submodule(name).requires_grad_(True)
    return Supernet(model.to(device), space, backbone.classifier)


def require_layers(
    plan: Outline, config: TrainConfig, *, method: Method = "glora", strict: bool = True
) -> None:
    """Refuse what ``build_supernet`` would refuse, before the backbone's weights are at hand.

    Raises:
        SettingError: As ``build_supernet``.
    """
    arguments = _with_drop_path(plan.model_args, config)
    with _drop_path_refused(config):
        model = replace(plan, model_args=arguments).build_empty(2)
    choose_layers(model, config, plan.classifier, method=method, strict=strict)


def _with_drop_path(model_args: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    rate = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    return {**model_args, **rate}


@contextmanager
def _drop_path_refused(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if not config.drop_path:
            raise
        raise SettingError(
            f"{error}. If it knows no drop path, give --drop-path 0.", "drop_path"
        ) from error
