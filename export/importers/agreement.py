"""How far the answers of a delta are from those of the network that it was extracted from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.evaluation.labelled_images import LabelledImages
from glora_deploy.evaluation.predictions import predict
from glora_deploy.merge.formula import merge_into
from glora_deploy.precision import Precision

from .assemble import Imported
from .full_checkpoint import Tuned

N_RANDOM = 16
"""Random inputs that two networks are compared on where there are no images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two networks on the same inputs."""

    n_images: int
    same: float
    """Share of the inputs that both give the same class, 0 to 1."""
    largest: float
    """Difference of any logit, as a share of the spread (standard deviation) of the logits."""
    accuracy: float | None = None
    """Top-1 of the network it was extracted from, 0 to 1; None without labels."""
    extracted_accuracy: float | None = None
    """Of the delta."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Networks:
    """The tuned network and the one that its delta merges into, float32, in eval mode.

    Args:
        backbone: Of both.
        tuned: The one.
        imported: The other's delta.
    """

    def __init__(self, backbone: Backbone, tuned: Tuned, imported: Imported) -> None:
        self._backbone = backbone
        self.tuned = backbone.build(tuned.n_classes)
        state = {name: torch.from_numpy(values) for name, values in tuned.tensors.items()}
        self.tuned.load_state_dict(state, strict=False)  # BatchNorm's counters apart
        self.merged = backbone.build(tuned.n_classes)
        tensors = {name: torch.from_numpy(values) for name, values in imported.tensors.items()}
        head = {name: tensors.pop(name) for name in tuned.head}
        self.merged.load_state_dict(head, strict=False)
        shapes = {layer: record.layer_shape() for layer, record in imported.layers.items()}
        frozen = {
            name: tensor.clone()
            for name, tensor in self.merged.state_dict().items()
            if name.rpartition(".")[0] in shapes
        }
        merge_into(self.merged, frozen, tensors, shapes)

    def on_random(self) -> Agreement:
        """On normally distributed inputs, the same ones each time."""
        height, width = self._backbone.preprocessing.size
        rng = np.random.default_rng(0)
        images = rng.standard_normal((N_RANDOM, 3, height, width), np.float32)
        first, second = (_logits(network, images) for network in (self.tuned, self.merged))
        return _compared(first, second, None)

    def on_images(
        self,
        images: LabelledImages,
        labels: tuple[str, ...],
        *,
        batch_size: int,
        report: Callable[[int, int], None],
    ) -> Agreement:
        """On labelled images.

        Args:
            images: Their classes are matched by name.
            labels: Of the networks.
            batch_size: Images computed at once.
            report: Told how many answers of how many are there.

        Raises:
            DataError: If an image cannot be read, or there are classes that are no labels.
        """
        targets = images.targets(labels)
        first, second = (
            predict(
                _Answering(network, labels, self._backbone.preprocessing),
                images.images,
                targets,
                batch_size=batch_size,
                report=partial(_half, report, turn),
            ).logits
            for turn, network in enumerate((self.tuned, self.merged))
        )
        return _compared(first, second, targets)


def _half(report: Callable[[int, int], None], turn: int, done: int, total: int) -> None:
    report(turn * total + done, 2 * total)


class _Answering:
    """A network as ``predict`` asks it."""

    task = "extracted"
    version = delta_sha256 = ""
    precision: Precision = "fp32"

    def __init__(
        self, network: nn.Module, labels: tuple[str, ...], preprocessing: Preprocessing
    ) -> None:
        self._network, self.labels, self.preprocessing = network, labels, preprocessing

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return _logits(self._network, images)


@torch.inference_mode()
def _logits(network: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    found: Tensor = network(torch.from_numpy(images))
    return found.numpy()


def _compared(
    first: NDArray[np.float32], second: NDArray[np.float32], targets: NDArray[np.int64] | None
) -> Agreement:
    classes = first.argmax(1), second.argmax(1)
    right = [None, None] if targets is None else [float((c == targets).mean()) for c in classes]
    return Agreement(
        n_images=len(first),
        same=float((classes[0] == classes[1]).mean()),
        largest=float(np.abs(first - second).max() / first.std()),
        accuracy=right[0],
        extracted_accuracy=right[1],
    )
