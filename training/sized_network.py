"""A network whose attached parts are taken in part, and the space of what may be taken."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone

from .adapted import build_frozen, generator_of
from .attached_network import HookedNetwork
from .config import TrainConfig
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


class SizedNetwork(HookedNetwork[Sizes]):
    """What a sized method trains, of which ``take`` says how much is used.

    Args:
        model: As ``HookedNetwork`` has it, like all that follow.
        classifier: As there.
        method: As there.
        config: As there.
        generator: As there.

    Raises:
        SettingError: As ``HookedNetwork``.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: tuple[str, ...],
        method: SizedMethod,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> None:
        self._method = method
        self._sizes: Sizes = {}
        super().__init__(model, classifier, method, config, generator)
        self.space = SizeSpace(method.choices(self.blocks, config))
        self.take(self.space.largest())

    def _seen_by_hooks(self) -> Mapping[str, Tensor]:
        return _Taken(self._parts, self._method, self._sizes)

    @property
    def genes(self) -> SizeSpace:
        """What a search chooses from."""
        return self.space

    def take(self, subnet: Sizes) -> None:
        """As ``Adapted.take``."""
        self.space.encode(subnet)  # which refuses sizes that are not on offer
        self._sizes.update(subnet)


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
