"""What every method trains: a frozen network with something in it that becomes a delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic

import torch
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone, Outline
from glora_deploy.glora.forms import LayerShape
from glora_deploy.store.manifest import SharedRecord

from .chosen_layers import choose_layers
from .config import TrainConfig
from .method import Method
from .search import Candidate
from .setting_error import SettingError


class Adapted(ABC, Generic[Candidate]):
    """A network of frozen layers that are adapted, and a classifier that is trained whole.

    Args:
        model: Trained in place.
        shapes: The adapted layers by dotted name, in module order.
        classifier: Dotted names of the modules that are trained whole.
    """

    def __init__(
        self, model: nn.Module, shapes: Mapping[str, LayerShape], classifier: tuple[str, ...]
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.classifier = classifier

    def head(self) -> dict[str, Tensor]:
        """The classifier's tensors by state-dict name."""
        prefixes = tuple(f"{name}." for name in self.classifier)
        return {k: v for k, v in self.model.state_dict().items() if k.startswith(prefixes)}

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, the classifier included, by name."""

    @abstractmethod
    def take(self, subnet: Candidate) -> None:
        """Compute this subnet from now on.

        Raises:
            ValueError: If it is none of this network's.
        """

    @abstractmethod
    def supports(self, subnet: Candidate) -> dict[str, Tensor]:
        """The tensors of one subnet, ``layer.A_d``-style names, as a delta stores them."""

    def stored(self, subnet: Candidate) -> dict[str, Tensor]:
        """What a delta stores of one subnet: its supports, or what layers share in their place."""
        return self.supports(subnet)

    @property
    def shared(self) -> SharedRecord | None:
        """How layers share what is stored; None where each stores its supports."""
        return None

    @abstractmethod
    def frozen(self) -> dict[str, Tensor]:
        """``layer.weight`` and ``layer.bias`` of every adapted layer, as the backbone has them."""


class Unmergeable(Adapted[Candidate]):
    """A trained network of which no layer is adapted, so that there is nothing to merge.

    Args:
        model: Trained in place.
        classifier: As ``Adapted`` has it.
    """

    def __init__(self, model: nn.Module, classifier: tuple[str, ...]) -> None:
        super().__init__(model, {}, classifier)

    def supports(self, subnet: Candidate) -> dict[str, Tensor]:
        """None."""
        return {}

    def frozen(self) -> dict[str, Tensor]:
        """None."""
        return {}


def build_frozen(
    backbone: Backbone, n_classes: int, config: TrainConfig, *, seed: int
) -> nn.Module:
    """A vanilla network, all of it frozen but its new classifier, on the CPU.

    Raises:
        SettingError: If the architecture knows no drop path and the configuration asks for it.
    """
    arguments = _with_drop_path(backbone.model_args, config)
    with _drop_path_refused(config):
        model = replace(backbone, model_args=arguments).build(n_classes, seed=seed)
    model.requires_grad_(False)
    for name in backbone.classifier:
        model.get_submodule(name).requires_grad_(True)
    return model


def build_to_adapt(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: Method,
    *,
    seed: int,
    strict: bool = True,
) -> tuple[nn.Module, dict[str, LayerShape]]:
    """A vanilla network for a method to adapt, all of it frozen but its new classifier.

    Args:
        backbone: Not modified.
        n_classes: Rows of the classifier.
        config: Kinds, patterns and drop path.
        method: As for ``choose_layers``.
        seed: Of the classifier.
        strict: As for ``choose_layers``.

    Returns:
        The network, on the CPU, and the layers to adapt.

    Raises:
        SettingError: If no layer matches, or the architecture knows no drop path and the
            configuration asks for it.
    """
    model = build_frozen(backbone, n_classes, config, seed=seed)
    layers = choose_layers(model, config, backbone.classifier, method=method, strict=strict)
    return model, layers


def require_layers(
    plan: Outline, config: TrainConfig, method: Method, *, strict: bool = True
) -> dict[str, LayerShape]:
    """Refuse what ``build_to_adapt`` would refuse, before the backbone's weights are at hand.

    Returns:
        The layers to adapt.

    Raises:
        SettingError: As ``build_to_adapt``.
    """
    model = build_outline(plan, config)
    return choose_layers(model, config, plan.classifier, method=method, strict=strict)


def build_outline(plan: Outline, config: TrainConfig) -> nn.Module:
    """The network of ``build_frozen`` without its numbers.

    Raises:
        SettingError: As ``build_frozen``.
    """
    arguments = _with_drop_path(plan.model_args, config)
    with _drop_path_refused(config):
        return replace(plan, model_args=arguments).build_empty(2)


def generator_of(seed: int) -> torch.Generator:
    """What draws the values that a method's tensors start from."""
    return torch.Generator().manual_seed(seed)


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
