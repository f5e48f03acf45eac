"""A network whose attached parts are taken in part, and the space of what may be taken."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone

from .adapted import Adapted, build_frozen, generator_of
from .attached_network import blocks_of
from .config import TrainConfig
from .folded_network import started
from .method import SizedMethod, Sizes
from .search import Genome


class SizeSpace:
    """Every candidate of a sized method; its ``Genes``, too.

    Args:
        choices: As ``SizedMethod.choices`` gives them.
    """

    def __init__(self, choices: Mapping[str, Mapping[int, int]]) -> None:
        self._options = {name: tuple(costs) for name, costs in choices.items()}
        self.costs = tuple(tuple(costs.values()) for costs in choices.values())

    def draw(self, rng: random.Random) -> Sizes:
        """A uniform random candidate."""
        return {name: rng.choice(options) for name, options in self._options.items()}

    def largest(self) -> Sizes:
        """The candidate that takes all of everything."""
        return {name: options[0] for name, options in self._options.items()}

    def encode(self, candidate: Sizes) -> Genome:
        """As ``Genes.encode``."""
        return tuple(options.index(candidate[name]) for name, options in self._options.items())

    def decode(self, genome: Genome) -> Sizes:
        """As ``Genes.decode``."""
        options = self._options.items()
        return {name: each[i] for (name, each), i in zip(options, genome, strict=True)}


class SizedNetwork(Adapted[Sizes]):
    """A frozen network and what a sized method trains in it; it adapts no layer.

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
        method: SizedMethod,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, {}, classifier)
        blocks = blocks_of(model, method)
        self.space = SizeSpace(method.choices(blocks, config))
        self._sizes = self.space.largest()
        device = next(model.parameters()).device
        self._parts = {
            name: nn.Parameter(started(part, generator).to(device))
            for name, part in method.parts(blocks, config).items()
        }
        method.attach(model, blocks, _Taken(self._parts, method, self._sizes), config)

    @property
    def genes(self) -> SizeSpace:
        """What a search chooses from."""
        return self.space

    def trainable(self) -> dict[str, nn.Parameter]:
        """The method's tensors and the classifier, by name."""
        own = {k: v for k, v in self.model.named_parameters() if v.requires_grad}
        return {**self._parts, **own}

    def take(self, subnet: Sizes) -> None:
        """As ``Adapted.take``."""
        self.space.encode(subnet)
        self._sizes.update(subnet)

    def supports(self, subnet: Sizes) -> dict[str, Tensor]:
        """None: nothing of it can be merged."""
        return {}

    def frozen(self) -> dict[str, Tensor]:
        """None: no layer is adapted."""
        return {}


class _Taken(Mapping[str, Tensor]):
    """Each part as far as it is taken at the moment it is asked for."""

    def __init__(
        self, parts: Mapping[str, Tensor], method: SizedMethod, sizes: Mapping[str, int]
    ) -> None:
        self._parts, self._method, self._sizes = parts, method, sizes

    def __getitem__(self, name: str) -> Tensor:
        part, cut = self._parts[name], self._method.slice_of(name)
        if cut is None:
            return part
        choice, axis = cut
        return part.narrow(axis, 0, self._sizes[choice])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def build_sized(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: SizedMethod,
    *,
    seed: int,
    device: torch.device,
) -> SizedNetwork:
    """A network that a sized method is trained in.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Sizes and drop path.
        method: What is attached.
        seed: Of the classifier and the method's tensors.
        device: Where to put it.

    Raises:
        SettingError: As ``build_frozen`` and ``SizedNetwork``.
    """
    model = build_frozen(backbone, n_classes, config, seed=seed).to(device)
    return SizedNetwork(model, backbone.classifier, method, config, generator_of(seed))
