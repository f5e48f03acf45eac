"""A network whose adapted layers compute with what a method's tensors fold into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from glora_deploy.backbones.load import Backbone
from glora_deploy.glora.forms import LayerShape, Subnet
from glora_deploy.glora.support_value import value_of
from glora_deploy.store.manifest import SharedRecord

from .adapted import Adapted, build_to_adapt, generator_of
from .config import TrainConfig
from .method import FoldedMethod, FrozenLayer, Part


class FoldedLayer(nn.Module):
    """A frozen layer with supports that are computed anew at each forward.

    Args:
        base: The vanilla layer; frozen.
        fold: Gives its supports, as ``glora.forms`` names and shapes them.
    """

    def __init__(self, base: nn.Module, fold: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__()
        self.base = base
        self._fold = fold

    def _effective(self) -> dict[str, Tensor]:
        frozen = cast(Tensor, self.base.weight)
        flat = frozen.reshape(frozen.shape[0], -1)
        supports = self._fold()
        weight, a, b = flat, value_of(supports, "A"), value_of(supports, "B")
        if a is not None:
            weight = torch.addcmul(weight, flat, a)
        if b is not None:
            weight = weight + b
        found = {"weight": weight.reshape(frozen.shape)}
        if (b0 := getattr(self.base, "bias", None)) is not None:
            bias, c, e = b0, value_of(supports, "C"), value_of(supports, "E")
            if e is not None:
                bias = bias + e
            if c is not None:
                bias = bias + (flat @ c).squeeze(1)
            found["bias"] = bias
        return found

    @property
    def weight(self) -> Tensor:
        """The effective weight, for blocks that read it themselves."""
        return self._effective()["weight"]

    @property
    def bias(self) -> Tensor | None:
        """The effective bias, or None where the layer has none."""
        return self._effective().get("bias")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base module's own forward, with the effective weight and bias."""
        return cast(Tensor, functional_call(self.base, self._effective(), (x, *args), kwargs))


class FoldedNetwork(Adapted[Subnet]):
    """A network that one folded method adapts; it has one subnet.

    Args:
        model: Frozen but for its classifier; its adapted layers are replaced.
        shapes: Of those layers.
        classifier: As ``Adapted`` has it.
        method: What adapts them.
        config: As the method takes it.
        generator: Draws what the tensors start from.

    Raises:
        SettingError: If the method cannot adapt these layers as it was asked to.
    """

    def __init__(
        self,
        model: nn.Module,
        shapes: Mapping[str, LayerShape],
        classifier: tuple[str, ...],
        method: FoldedMethod,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, shapes, classifier)
        self.subnet = method.forms(shapes, config)
        self._method = method
        self._config = config
        device = next(model.parameters()).device
        self._parts = {
            name: nn.Parameter(started(part, generator).to(device))
            for name, part in method.parts(shapes, config).items()
        }
        self._layers: dict[str, FrozenLayer] = {}
        for name, shape in shapes.items():
            base = model.get_submodule(name)
            weight, bias = cast(Tensor, base.weight), getattr(base, "bias", None)
            flat = weight.reshape(shape.d_out, -1)
            self._layers[name] = layer = FrozenLayer(name, shape, flat, bias)
            parent, _, child = name.rpartition(".")
            wrapped = FoldedLayer(base, self._folder_of(layer))
            setattr(model.get_submodule(parent), child, wrapped)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The method's tensors and the classifier, by name."""
        own = {k: v for k, v in self.model.named_parameters() if v.requires_grad}
        return {**self._parts, **own}

    def take(self, subnet: Subnet) -> None:
        """There is only the one.

        Raises:
            ValueError: If it is another one.
        """
        if subnet != self.subnet:
            raise ValueError(f"method {self._method.name} has one subnet, got another")

    @torch.no_grad()
    def supports(self, subnet: Subnet) -> dict[str, Tensor]:
        """As ``Adapted.supports``."""
        self.take(subnet)
        return {
            f"{name}.{key}": tensor.detach()
            for name, layer in self._layers.items()
            for key, tensor in self._folder_of(layer)().items()
        }

    @torch.no_grad()
    def stored(self, subnet: Subnet) -> dict[str, Tensor]:
        """As ``Adapted.stored``."""
        if self._method.shared is None:
            return self.supports(subnet)
        self.take(subnet)
        found = self._method.stored(self._parts, self._config)
        return {name: tensor.detach() for name, tensor in found.items()}

    @property
    def shared(self) -> SharedRecord | None:
        """As ``Adapted.shared``."""
        if self._method.shared is None:
            return None
        (rank,) = self._config.ranks
        return SharedRecord(kind=self._method.shared, rank=rank)

    def frozen(self) -> dict[str, Tensor]:
        """As ``Adapted.frozen``."""
        return {
            f"{name}.{key}": tensor
            for name in self.shapes
            for key, tensor in _base_of(self.model, name).state_dict().items()
        }

    def _folder_of(self, layer: FrozenLayer) -> Callable[[], dict[str, Tensor]]:
        return lambda: self._method.fold(layer, self._parts, self._config)


def build_folded(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: FoldedMethod,
    *,
    seed: int,
    device: torch.device,
    strict: bool = True,
) -> FoldedNetwork:
    """A network that a folded method adapts.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Kinds, patterns, ranks, scale and drop path.
        method: What adapts it.
        seed: Of the classifier and the method's tensors.
        device: Where to put it.
        strict: As for ``choose_layers``.

    Raises:
        SettingError: As ``build_to_adapt``, or if the method cannot adapt the layers.
    """
    model, layers = build_to_adapt(backbone, n_classes, config, method, seed=seed, strict=strict)
    return FoldedNetwork(
        model.to(device), layers, backbone.classifier, method, config, generator_of(seed)
    )


def started(part: Part, generator: torch.Generator) -> Tensor:
    """A tensor as a part starts."""
    values = torch.zeros(part.shape)
    if part.start == "uniform":
        low, high = part.centre - part.spread, part.centre + part.spread
        values.uniform_(low, high, generator=generator)
    elif part.start == "normal":
        values.normal_(part.centre, part.spread, generator=generator)
    return values


def _base_of(model: nn.Module, name: str) -> nn.Module:
    return cast(FoldedLayer, model.get_submodule(name)).base
