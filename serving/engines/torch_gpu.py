"""A backbone's network in PyTorch on a GPU: captured once, its weights overwritten in place.

Tasks are merged on the GPU, from the frozen weights that lie there: what a swap to a task that is
not in memory sends is the delta.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glora_deploy.errors import BackboneMismatchError, NonFiniteError
from glora_deploy.glora.forms import LayerShape
from glora_deploy.glora.support_value import split_delta, value_of
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import TensorMap

from .torch_network import TorchWeights, as_tensor, headless

_one_at_a_time = threading.Lock()
"""Held by whoever uses the GPU: nobody may allocate there while another captures a graph."""


@dataclass
class _Captured:
    """The network on one batch size, as a graph of the GPU."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    features: Tensor


class TorchGpuNetwork:
    """One architecture in PyTorch, in float32, on a GPU.

    Args:
        manifest: Of any delta on the backbone.
        frozen: The backbone's tensors.
        adapted: Names of the tensors that deltas adapt.
        device: Where it runs; the CPU merges alike, and captures nothing.

    Raises:
        LoadError: If its head is not one linear layer, or the tensors are not the network's.
    """

    def __init__(
        self,
        manifest: Manifest,
        frozen: TensorMap,
        *,
        adapted: Collection[str],
        device: str = "cuda",
    ) -> None:
        self._device = torch.device(device)
        tensors = {
            name: as_tensor(value).to(self._device, copy=True) for name, value in frozen.items()
        }
        model, self._head = headless(manifest, tensors)
        self._model = model.to(self._device)  # what is in no file, too
        self._places = {n: t for n, t in self._model.state_dict().items() if n in adapted}
        # The places themselves hold the weights of whichever task ran last.
        self._frozen = {name: place.clone() for name, place in self._places.items()}
        self._holds: weakref.ref[TorchWeights] | None = None
        self._captured: dict[int, _Captured] = {}

    def size_of(self, manifest: Manifest) -> int:
        """As ``MergingNetwork.size_of``."""
        adapted_bytes: int = sum(place.nbytes for place in self._places.values())
        return adapted_bytes + 4 * manifest.n_head_parameters

    @torch.inference_mode()
    def merge(self, manifest: Manifest, delta: Mapping[str, NDArray[Any]]) -> TorchWeights:
        """As ``MergingNetwork.merge``; sums are formed in float32, of biases in float64."""
        with _one_at_a_time:
            sent = {name: as_tensor(value).to(self._device) for name, value in delta.items()}
            supports, classifier = split_delta(sent, manifest.layers)
            slots: dict[str, Tensor] = {}
            for layer, own in supports.items():
                slots |= self._merged(layer, own)
            head = {name: tensor.float() for name, tensor in classifier.items()}
            _require_finite(manifest, {**slots, **head})
            bias_of_head = head.get(f"{self._head}.bias")
            return TorchWeights(slots, head[f"{self._head}.weight"], bias_of_head)

    @torch.inference_mode()
    def run(self, weights: TorchWeights, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``; one batch at a time."""
        given = torch.from_numpy(images)
        with _one_at_a_time:
            self._put(weights)
            return weights.logits(self._features(given))

    def _merged(self, layer: str, supports: Mapping[str, Tensor]) -> dict[str, Tensor]:
        w0, b0 = self._frozen.get(f"{layer}.weight"), self._frozen.get(f"{layer}.bias")
        if w0 is None:
            raise BackboneMismatchError(f"the backbone must have {layer}, which the delta adapts")
        flat = w0.reshape(len(w0), -1)
        shape = LayerShape(
            kind="linear", d_out=flat.shape[0], d_in=flat.shape[1], bias=b0 is not None
        )
        try:
            shape.require_fit({name: tuple(value.shape) for name, value in supports.items()})
        except ValueError as error:
            raise BackboneMismatchError(f"{layer}: {error}") from error
        merged = {f"{layer}.weight": merge_weight(flat, supports).reshape(w0.shape)}
        if b0 is not None:
            merged[f"{layer}.bias"] = merge_bias(flat, b0, supports)
        return merged

    def _put(self, weights: TorchWeights) -> None:
        """Overwrite the parameters, if they are another task's."""
        if self._holds is not None and self._holds() is weights:
            return
        self._holds = None  # half of each, until it is done
        for name, tensor in weights.slots.items():
            self._places[name].copy_(tensor)
        self._holds = weakref.ref(weights)

    # TF32, cuDNN's default for float32 convolutions, rounds their inputs to 10 bits.
    @torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    def _features(self, images: Tensor) -> Tensor:
        if self._device.type != "cuda":
            features: Tensor = self._model(images)
            return features
        captured = self._captured.get(len(images))
        if captured is None:
            captured = self._captured[len(images)] = self._capture(images.to(self._device))
        captured.images.copy_(images)
        captured.graph.replay()
        return captured.features

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


def merge_weight(w0: Tensor, supports: Mapping[str, Tensor]) -> Tensor:
    """``w0 + w0 * A + B`` ``(d_out, d_in)`` float32, in memory of its own."""
    own = {name: support.float() for name, support in supports.items()}
    a = value_of(own, "A")
    w = w0.clone() if a is None else w0 * (1 + a)
    if "B_d" in own:
        return w.addmm_(own["B_d"], own["B_u"])
    b = value_of(own, "B")
    return w if b is None else w.add_(b)


def merge_bias(w0: Tensor, b0: Tensor, supports: Mapping[str, Tensor]) -> Tensor:
    """``b0 + b0 * D + E + w0 @ C`` ``(d_out,)``, in float64 and rounded once to float32."""
    wide = {name: support.double() for name, support in supports.items()}
    bias = b0.double()
    c, d, e = value_of(wide, "C"), value_of(wide, "D"), value_of(wide, "E")
    merged = bias if d is None else bias + bias * d
    if e is not None:
        merged = merged + e
    if c is not None:
        merged = merged + (w0.double() @ c).squeeze(1)
    return merged.float()


def _require_finite(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    flags = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    bad = [name for name, finite in zip(tensors, flags, strict=True) if not finite]
    if bad:
        raise NonFiniteError(
            f"{manifest.task}/{manifest.version}: {bad[0]} must be finite when merged, "
            f"got NaN or infinity in {len(bad)} tensors"
        )
