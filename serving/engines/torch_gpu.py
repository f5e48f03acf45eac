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
from glora_deploy.glora.support_value import split_delta, value_of
from glora_deploy.merge.cpu import require_shapes
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import TensorMap

from .torch_network import as_tensor, head_logits, headless

_ALIGNMENT = 64
"""Numbers; matrices that begin at multiples of 256 bytes are multiplied fastest."""

_one_at_a_time = threading.Lock()
"""Held by whoever uses the GPU: nobody may allocate there while another captures a graph."""


@dataclass(frozen=True, slots=True)
class _Joined:
    """Named tensors in one piece of memory, so that one operation moves all of them."""

    memory: Tensor
    views: dict[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _Joined:
        """A copy of float32 tensors."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        size = sum(map(_padded, shapes.values()))
        memory = next(iter(tensors.values())).new_zeros(size) if tensors else torch.zeros(0)
        joined = cls(memory, _views(memory, shapes))
        for name, view in joined.views.items():
            view.copy_(tensors[name])
        return joined

    def copy(self) -> _Joined:
        """The same in memory of its own."""
        memory = self.memory.clone()
        return _Joined(memory, _views(memory, {n: view.shape for n, view in self.views.items()}))


def _views(memory: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    views, begin = {}, 0
    for name, shape in shapes.items():
        views[name] = memory[begin : begin + shape.numel()].view(shape)
        begin += _padded(shape)
    return views


def _padded(shape: torch.Size) -> int:
    return -(-shape.numel() // _ALIGNMENT) * _ALIGNMENT


@dataclass(eq=False)
class TorchGpuWeights:
    """A task's weights on the GPU."""

    slots: Tensor
    """Every adapted tensor, as the network's own lie in memory."""
    head_weight: Tensor
    head_bias: Tensor | None

    def finite(self) -> bool:
        """Whether all of them are."""
        parts = [self.slots, self.head_weight.view(-1)]
        if self.head_bias is not None:
            parts.append(self.head_bias)
        return bool(torch.stack([part.isfinite().all() for part in parts]).all())


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
        self._frozen = _Joined.of({n: t for n, t in tensors.items() if n in adapted})
        # What adapted weights the network has now is a matter of whose turn it is.
        self._places = self._frozen.copy()
        model, self._head = headless(manifest, {**tensors, **self._places.views})
        self._model = model.to(self._device)  # what is in no file, too
        self._holds: weakref.ref[TorchGpuWeights] | None = None
        self._captured: dict[int, _Captured] = {}

    def size_of(self, manifest: Manifest) -> int:
        """As ``MergingNetwork.size_of``."""
        return self._places.memory.nbytes + 4 * manifest.n_head_parameters

    @torch.inference_mode()
    def merge(self, manifest: Manifest, delta: Mapping[str, NDArray[Any]]) -> TorchGpuWeights:
        """As ``MergingNetwork.merge``; sums are formed in float32, of biases in float64."""
        with _one_at_a_time:
            supports, classifier = split_delta(self._sent(delta), manifest.layers)
            merged = self._frozen.copy()
            for layer, own in supports.items():
                self._merge(layer, own, merged.views)
            weights = TorchGpuWeights(
                merged.memory,
                classifier[f"{self._head}.weight"].clone(),
                None if (b := classifier.get(f"{self._head}.bias")) is None else b.clone(),
            )
            if not weights.finite():
                bad = [n for n, tensor in merged.views.items() if not tensor.isfinite().all()]
                raise NonFiniteError(
                    f"{manifest.task}/{manifest.version}: {(bad or [self._head])[0]} must be "
                    "finite when merged, got NaN or infinity"
                )
            return weights

    @torch.inference_mode()
    def run(self, weights: TorchGpuWeights, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``; one batch at a time."""
        given = torch.from_numpy(images)
        with _one_at_a_time:
            self._put(weights)
            return head_logits(self._features(given), weights.head_weight, weights.head_bias)

    def _sent(self, delta: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A delta on the GPU in float32, sent at once."""
        flat = np.concatenate(
            [value.astype(np.float32, copy=False).ravel() for value in delta.values()]
        )
        sent = torch.from_numpy(flat).to(self._device)
        parts = torch.split(sent, [value.size for value in delta.values()])
        return {
            name: part.view(value.shape)
            for (name, value), part in zip(delta.items(), parts, strict=True)
        }

    def _merge(self, layer: str, supports: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        frozen = self._frozen.views
        w0, b0 = frozen.get(f"{layer}.weight"), frozen.get(f"{layer}.bias")
        if w0 is None:
            raise BackboneMismatchError(f"the backbone must have {layer}, which the delta adapts")
        flat = w0.reshape(len(w0), -1)
        d_out, d_in = flat.shape
        bias = None if b0 is None else tuple(b0.shape)
        sizes = tuple((name, tuple(value.shape)) for name, value in supports.items())
        try:
            require_shapes((d_out, d_in), bias, sizes, (d_out, d_in), bias, False)
        except ValueError as error:
            raise BackboneMismatchError(f"{layer}: {error}") from error
        merge_weight(flat, supports, out[f"{layer}.weight"].view(d_out, d_in))
        if b0 is not None:
            merge_bias(flat, b0, supports, out[f"{layer}.bias"])

    def _put(self, weights: TorchGpuWeights) -> None:
        """Overwrite the parameters, if they are another task's."""
        if self._holds is not None and self._holds() is weights:
            return
        self._places.memory.copy_(weights.slots)
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


def merge_weight(w0: Tensor, supports: Mapping[str, Tensor], out: Tensor) -> None:
    """Write ``w0 + w0 * A + B`` ``(d_out, d_in)``; everything is float32."""
    a = value_of(supports, "A")
    if a is None:
        out.copy_(w0)
    else:
        torch.addcmul(w0, w0, a, out=out)
    if "B_d" in supports:
        out.addmm_(supports["B_d"], supports["B_u"])
    elif (b := value_of(supports, "B")) is not None:
        out.add_(b)


def merge_bias(w0: Tensor, b0: Tensor, supports: Mapping[str, Tensor], out: Tensor) -> None:
    """Write ``b0 + b0 * D + E + w0 @ C`` ``(d_out,)``, summed in float64 and rounded once."""
    wide = {name: support.double() for name, support in supports.items() if name[0] in "CDE"}
    c, d, e = value_of(wide, "C"), value_of(wide, "D"), value_of(wide, "E")
    merged = b0.double() if wide else b0
    if d is not None:
        merged = merged + merged * d
    if e is not None:
        merged = merged + e
    if c is not None:
        merged = merged + (w0.double() @ c).squeeze(1)
    out.copy_(merged)
