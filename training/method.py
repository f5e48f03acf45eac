"""What a way to train a task says of itself. Each is one file in ``methods/``.

Nothing here or there imports torch: ``--help`` and wrong usage name every method and count what it
would train. A folded method computes with the tensors that it is given, whatever their library.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from glora_deploy.glora.forms import LayerKind, LayerShape, Subnet
from glora_deploy.glora.shared_factors import SharedKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .config import TrainConfig

Distribution = Literal["zeros", "uniform", "normal"]


@dataclass(frozen=True, slots=True)
class Part:
    """One trained tensor, and how it starts."""

    shape: tuple[int, ...]
    start: Distribution = "zeros"
    centre: float = 0.0
    """Mean of the start."""
    spread: float = 0.0
    """Standard deviation of ``normal``, half the width of ``uniform``."""


def xavier(rows: int, columns: int) -> Part:
    """A matrix that starts Xavier-uniform (Glorot and Bengio, 2010)."""
    return Part((rows, columns), "uniform", spread=(6 / (rows + columns)) ** 0.5)


def kaiming(rows: int, columns: int) -> Part:
    """A matrix that starts as ``nn.Linear`` does: uniform in ``+-columns**-0.5``."""
    return Part((rows, columns), "uniform", spread=columns**-0.5)


def normal(size: int, centre: float, spread: float) -> Part:
    """A vector that starts from a normal distribution."""
    return Part((size,), "normal", centre, spread)


@dataclass(frozen=True, slots=True)
class FrozenLayer:
    """A layer as the backbone has it."""

    name: str
    shape: LayerShape
    weight: Tensor
    """``(d_out, d_in)``; a kernel flattened, a per-channel weight as ``(d_out, 1)``."""
    bias: Tensor | None
    """``(d_out,)``"""


class Method(ABC):
    """A way to train a task on a frozen backbone."""

    name: ClassVar[str]
    """As ``--method`` takes it and manifests keep it."""
    summary: ClassVar[str]
    """What is trained, in a few words."""
    source: ClassVar[str]
    """Where it was published."""
    kinds: ClassVar[tuple[LayerKind, ...]] = ("linear",)
    """Of the layers that it adapts if nobody says otherwise."""
    possible_kinds: ClassVar[tuple[LayerKind, ...]] = ("linear",)
    """Of the layers that it can adapt."""
    rank: ClassVar[int | None] = None
    """``--ranks`` if nobody says otherwise; None if it has none."""
    scale: ClassVar[float | None] = None
    """``--scale`` if nobody says otherwise; None if it has none."""
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 100, "lr": 1e-3}
    """What its authors trained with, where that is not what GLoRA's did."""
    short_lr: ClassVar[float | None] = None
    """Peak learning rate of the short schedule if nobody says otherwise; None for that of all."""
    adapts_layers: ClassVar[bool] = True
    """Whether it matters to it which layers are chosen."""
    searches: ClassVar[bool] = False
    """Whether a supernet is trained, and its best subnet searched."""

    def can_adapt(self, shape: LayerShape) -> bool:
        """Whether a layer of this shape, of a kind that is possible, has anything to train."""
        return True

    def choose(
        self, layers: Mapping[str, LayerShape], config: TrainConfig
    ) -> Mapping[str, LayerShape]:
        """Of the layers it could adapt, those that it does adapt where no pattern names any."""
        return layers


class FoldedMethod(Method):
    """A method whose result is a delta as GLoRA's is: its tensors fold into supports A to E."""

    @abstractmethod
    def parts(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> dict[str, Part]:
        """What is trained, by name, the classifier aside.

        Raises:
            SettingError: If it cannot adapt these layers as it was asked to.
        """

    shared: ClassVar[SharedKind | None] = None
    """How layers share what is stored; None where each stores its supports."""

    @abstractmethod
    def forms(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> Subnet:
        """The form of each support that ``fold`` gives."""

    @abstractmethod
    def fold(
        self, layer: FrozenLayer, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> dict[str, Tensor]:
        """The supports of one layer, named and shaped as ``forms`` says, differentiable."""

    def stored(self, parts: Mapping[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
        """What stands for the supports of all layers, where they are ``shared``."""
        raise NotImplementedError(f"method {self.name} stores the supports of each layer")

    def n_trained(self, layers: Mapping[str, LayerShape], config: TrainConfig) -> int:
        """Numbers that are trained, the classifier not counted."""
        return n_numbers(self.parts(layers, config))


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a vision transformer, for methods that change what happens in them."""

    names: tuple[str, ...]
    """Dotted, first to last."""
    width: int
    """Numbers of a token."""
    n_prefix: int
    """Tokens before those of the image, such as cls."""


class ComparedMethod(Method):
    """A method that is trained and measured beside others, and leaves no delta."""

    adapts_layers = False
    why: ClassVar[str]
    """Why it leaves none, as half a sentence."""


class WholeMethod(ComparedMethod):
    """A method that trains the network's own weights, all of them; the network is kept."""


class AttachedMethod(ComparedMethod):
    """A method that changes inference itself, so that nothing of it can be merged."""

    @abstractmethod
    def parts(self, blocks: Blocks, config: TrainConfig) -> dict[str, Part]:
        """What is trained, by name, the classifier aside."""

    @abstractmethod
    def attach(
        self, model: nn.Module, blocks: Blocks, parts: Mapping[str, Tensor], config: TrainConfig
    ) -> None:
        """Hook what is trained into a network."""

    def n_trained(self, blocks: Blocks, config: TrainConfig) -> int:
        """Numbers that are trained, the classifier not counted."""
        return n_numbers(self.parts(blocks, config))


Sizes = dict[str, int]
"""How much of each choice a candidate takes, by the name of the choice."""


class SizedMethod(AttachedMethod):
    """An attached method whose parts may be taken in part; how much of each is searched.

    A smaller choice is the leading slice of the largest one, so that all share their weights.
    """

    searches = True
    sizes: ClassVar[tuple[int, ...]]
    """``--ranks`` if nobody says otherwise."""

    @abstractmethod
    def choices(self, blocks: Blocks, config: TrainConfig) -> dict[str, dict[int, int]]:
        """For each choice its sizes, largest first and 0 last, and the numbers that each trains."""

    @abstractmethod
    def slice_of(self, part: str) -> tuple[str, int] | None:
        """By which choice a part is sliced, and along which axis; None for one that is not."""


def n_numbers(parts: Mapping[str, Part]) -> int:
    """Numbers of all parts together."""
    return sum(math.prod(part.shape) for part in parts.values())
