"""A backbone's network in PyTorch on the CPU: the merged buffers themselves are its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from glora_deploy.backbones.load import build_empty
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import TensorMap

from ..errors import LoadError
from .network import Slot, SlotLayout


@dataclass(eq=False)
class TorchWeights:
    """A task's weights, in the memory that they were merged into."""

    slots: dict[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor | None


class TorchNetwork:
    """One architecture in PyTorch, in float32, on the CPU: a swap moves nothing.

    Args:
        manifest: Of any delta on the backbone.
        frozen: The backbone's tensors; they stay in their file.
        adapted: Names of the tensors that deltas adapt.

    Raises:
        LoadError: If its head is not one linear layer, or the tensors are not the network's.
    """

    def __init__(self, manifest: Manifest, frozen: TensorMap, *, adapted: Collection[str]) -> None:
        tensors = {name: as_tensor(value) for name, value in frozen.items()}
        self._model, self._head = headless(manifest, tensors)
        state = self._model.state_dict()
        slots = [Slot(name=n, shape=tuple(state[n].shape)) for n in state if n in adapted]
        self.layout = SlotLayout(slots, np.dtype(np.float32))
        self.head = tuple(sorted(manifest.head))

    def bind(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> TorchWeights:
        """As ``Network.bind``."""
        bias = head.get(f"{self._head}.bias")
        return TorchWeights(
            {name: as_tensor(array) for name, array in slots.items()},
            as_tensor(head[f"{self._head}.weight"]),
            None if bias is None else as_tensor(bias),
        )

    def fix(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> TorchWeights | None:
        """As ``Network.fix``: PyTorch lays nothing out."""
        return None

    @torch.inference_mode()
    def run(self, weights: TorchWeights, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``."""
        given = torch.from_numpy(images)
        features = torch.func.functional_call(self._model, weights.slots, (given,))
        return head_logits(features, weights.head_weight, weights.head_bias)


def headless(manifest: Manifest, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, str]:
    """A backbone's network that gives the features which its head takes.

    Args:
        manifest: Of any delta on the backbone.
        tensors: The backbone's, which become the network's own.

    Returns:
        The network, and the name of the head that it lacks.

    Raises:
        LoadError: If its head is not one linear layer, or the tensors are not the network's.
    """
    backbone = manifest.backbone
    model = build_empty(backbone.name, backbone.model_args, 1)
    head = backbone.classifier[0]
    if len(backbone.classifier) > 1 or not isinstance(model.get_submodule(head), nn.Linear):
        raise LoadError(f"{backbone.name}: the head must be one linear layer")
    parent, _, name = head.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise LoadError(f"{backbone.name}: the backbone must fit timm's: {reason}") from error
    return model.eval().requires_grad_(False), head


def head_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> NDArray[np.float32]:
    """What a linear head answers to features ``(n, d)``: ``(n, n_classes)``."""
    logits: NDArray[np.float32] = F.linear(features, weight, bias).float().cpu().numpy()
    return logits


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The same memory as a tensor, which nothing may write to if it is a file's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
