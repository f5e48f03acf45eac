"""A backbone's network in PyTorch, kept while its weights change from task to task.

On the CPU the parameters are the merged buffers themselves: a swap moves nothing. On a GPU they
have one place, which a swap overwrites, so that a captured graph of the network stays valid.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    """A task's weights on the network's device."""

    slots: dict[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor | None


@dataclass
class _Captured:
    """The network on one batch size, as a graph of a GPU."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    features: Tensor


class TorchNetwork:
    """One architecture in PyTorch, in float32.

    Args:
        manifest: Of any delta on the backbone.
        frozen: The backbone's tensors; on the CPU they stay in their file.
        adapted: Names of the tensors that deltas adapt.
        device: Where it runs.

    Raises:
        LoadError: If its head is not one linear layer, or the tensors are not the network's.
    """

    def __init__(
        self,
        manifest: Manifest,
        frozen: TensorMap,
        *,
        adapted: Collection[str],
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        backbone = manifest.backbone
        model = build_empty(backbone.name, backbone.model_args, 1)
        classifier = backbone.classifier[0]
        if len(backbone.classifier) > 1 or not isinstance(
            model.get_submodule(classifier), nn.Linear
        ):
            raise LoadError(f"{backbone.name}: the head must be one linear layer")
        parent, _, name = classifier.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
        try:
            tensors = {name: _tensor(value) for name, value in frozen.items()}
            model.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise LoadError(f"{backbone.name}: the backbone must fit timm's: {reason}") from error
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        state = self._model.state_dict()
        slots = [Slot(name=n, shape=tuple(state[n].shape)) for n in state if n in adapted]
        self.layout = SlotLayout(slots, np.dtype(np.float32))
        self.head = tuple(sorted(manifest.head))
        self._head = classifier
        self._places = {slot.name: state[slot.name] for slot in slots}
        self._holds: weakref.ref[TorchWeights] | None = None
        self._captured: dict[int, _Captured] = {}
        self._lock = threading.Lock()

    def bind(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> TorchWeights:
        """As ``Network.bind``; on a GPU the weights are copied there."""
        bias = head.get(f"{self._head}.bias")
        return TorchWeights(
            {name: self._moved(array) for name, array in slots.items()},
            self._moved(head[f"{self._head}.weight"]),
            None if bias is None else self._moved(bias),
        )

    def fix(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> TorchWeights | None:
        """As ``Network.fix``: PyTorch lays nothing out."""
        return None

    @torch.inference_mode()
    def run(self, weights: TorchWeights, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``; one batch at a time."""
        given = torch.from_numpy(images)
        if self._device.type == "cpu":
            features = torch.func.functional_call(self._model, weights.slots, (given,))
            return _logits(features, weights)
        with self._lock:
            self._put(weights)
            return _logits(self._features(given), weights)

    def _put(self, weights: TorchWeights) -> None:
        """Overwrite the parameters, if they are another task's."""
        if self._holds is not None and self._holds() is weights:
            return
        self._holds = None  # half of each, until it is done
        for name, tensor in weights.slots.items():
            self._places[name].copy_(tensor)
        self._holds = weakref.ref(weights)

    def _features(self, images: Tensor) -> Tensor:
        captured = self._captured.get(len(images))
        if captured is None:
            captured = self._captured[len(images)] = self._capture(images.to(self._device))
        captured.images.copy_(images)
        captured.graph.replay()
        return captured.features

    # TF32, cuDNN's default for float32 convolutions, rounds their inputs to 10 bits.
    @torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    def _capture(self, images: Tensor) -> _Captured:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up outside of the capture
            for _ in range(2):
                self._model(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            features = self._model(images)
        return _Captured(graph, images, features)

    def _moved(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _logits(features: Tensor, weights: TorchWeights) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = (
        F.linear(features, weights.head_weight, weights.head_bias).float().cpu().numpy()
    )
    return logits


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # Of a read-only map of a file; nothing here writes to what is not copied.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
