"""Images of many tasks in one batch: constant weights, and small terms of each row's own task.

Only deltas that adapt linear layers alone, with an A that is a vector, a scalar or none on each
layer, can be served so; what they change is then of low rank beside a scaling of whole outputs
(``mixed_graph``). A swap costs nothing, and a task takes its delta's memory instead of the
network's; every row computes a little more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from glora_deploy.glora.support_value import factors_of, value_of
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import TensorMap

from ..onnx_session import WeightedSession
from .mixed_graph import with_row_terms
from .weight_inputs import point_at_backbone

Images = NDArray[np.float32]


def can_be_mixed(manifest: Manifest) -> bool:
    """Whether the forms of a delta allow it to share batches with other tasks."""
    for layer, forms in manifest.subnet().items():
        kinds = {path.kind for _, path in forms.items()}
        if forms.A.kind == "lora":
            return False
        if manifest.layers[layer].layer_shape().kind != "linear" and kinds != {"none"}:
            return False
    return True


def linear_layers(manifest: Manifest) -> dict[str, bool]:
    """Every linear layer that a delta may change, and whether it has a bias."""
    shapes = manifest.shapes()
    return {layer: shape.bias for layer, shape in shapes.items() if shape.kind == "linear"}


@dataclass(frozen=True, slots=True)
class RowTerms:
    """What tells one task from another: the graph's inputs for one row, by name."""

    values: Mapping[str, NDArray[np.float32]]
    n_classes: int


class MixedNetwork:
    """One architecture on ONNX Runtime whose batches may hold images of several tasks.

    Args:
        graph: As an export wrote it, in float32. Not modified.
        weights: The backbone's safetensors file.
        frozen: The same, mapped.
        layers: As ``linear_layers`` gives them.
        head: Names of the classifier's tensors.
        threads: Threads within an operator; ONNX Runtime's own choice if None.

    Raises:
        LoadError: If the network cannot be served so.
        ExportError: If ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        weights: Path,
        frozen: TensorMap,
        *,
        layers: Mapping[str, bool],
        head: Sequence[str],
        threads: int | None = None,
    ) -> None:
        model = with_row_terms(graph, layers, head)
        point_at_backbone(model, weights, frozen)
        self._frozen = frozen
        self._layers = dict(layers)
        self._head = tuple(head)
        self._session = WeightedSession(model.SerializeToString(), weights.parent, threads)

    def size_of(self, manifest: Manifest) -> int:
        """Bytes that the terms of a task take."""
        n_numbers = manifest.n_head_parameters
        shapes, subnet = manifest.shapes(), manifest.subnet()
        for layer, has_bias in self._layers.items():
            d_out, d_in = shapes[layer].d_out, shapes[layer].d_in
            rank = max(1, subnet[layer].B.rank)
            n_numbers += (1 + has_bias) * d_out + rank * (d_out + d_in)
        return 4 * n_numbers

    def terms(self, manifest: Manifest, delta: Mapping[str, NDArray[Any]]) -> RowTerms:
        """The terms of one task; formed in float64 and rounded once.

        Args:
            manifest: Of a delta that ``can_be_mixed``.
            delta: Its tensors by name. Not modified.
        """
        values: dict[str, NDArray[np.float32]] = {}
        for layer, has_bias in self._layers.items():
            prefix = f"{layer}."
            supports = {
                name.removeprefix(prefix): value.astype(np.float64)
                for name, value in delta.items()
                if name.startswith(prefix)
            }
            terms = _layer_terms(
                self._frozen[f"{layer}.weight"],
                self._frozen[f"{layer}.bias"] if has_bias else None,
                supports,
            )
            values |= {f"{prefix}{name}": value for name, value in terms.items()}
        for name in self._head:
            value = delta[name].astype(np.float32)
            values[name] = value.T[None] if value.ndim == 2 else value[None, None]
        return RowTerms(
            {name: np.ascontiguousarray(value) for name, value in values.items()},
            len(manifest.labels),
        )

    def run(self, parts: Sequence[tuple[RowTerms, Images]]) -> list[NDArray[np.float32]]:
        """Logits of several tasks' images, computed together.

        Args:
            parts: Terms of a task, and its preprocessed images ``(n, 3, h, w)``.

        Returns:
            ``(n, n_classes)`` of each part.
        """
        counts = [len(images) for _, images in parts]
        joined = np.ascontiguousarray(np.concatenate([images for _, images in parts]))
        values = {
            name: self._session.value(_joined([terms.values[name] for terms, _ in parts], counts))
            for name in parts[0][0].values
        }
        logits = np.asarray(self._session.logits(joined, values), np.float32)
        ends = np.cumsum(counts)
        return [
            logits[end - count : end, : terms.n_classes]
            for (terms, _), count, end in zip(parts, counts, ends, strict=True)
        ]


def _layer_terms(
    w0: NDArray[np.float32],
    b0: NDArray[np.float32] | None,
    supports: Mapping[str, NDArray[np.float64]],
) -> dict[str, NDArray[np.float32]]:
    d_out, d_in = w0.shape
    scale = np.ones(d_out)
    if (a := value_of(supports, "A")) is not None:
        scale = scale + a.reshape(-1)
    down, up = np.zeros((d_out, 1)), np.zeros((1, d_in))  # a product of rank 0 is not computed
    if (factors := factors_of(supports, "B")) is not None:
        down, found = factors
        down = np.broadcast_to(down, (d_out, down.shape[1]))
        up = np.ones((1, d_in)) if found is None else found
    terms = {"scale": scale[None, None], "up": up.T[None], "down": down.T[None]}
    if b0 is not None:
        bias = b0.astype(np.float64)
        for support, factor in (("D", bias), ("E", 1.0)):
            if support in supports:
                bias = bias + factor * supports[support]
        if (c := value_of(supports, "C")) is not None:
            bias = bias + (w0 @ c)[:, 0]
        terms["shift"] = bias[None, None]
    return {name: value.astype(np.float32) for name, value in terms.items()}


def _joined(values: Sequence[NDArray[np.float32]], counts: Sequence[int]) -> NDArray[np.float32]:
    """One entry for each row, zeros where a task has less ranks or classes than another."""
    if len(values) == 1:
        return values[0]  # the same for every row
    _, height, width = (
        max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)
    )
    joined = np.zeros((sum(counts), height, width), np.float32)
    first = 0
    for value, count in zip(values, counts, strict=True):
        joined[first : first + count, : value.shape[1], : value.shape[2]] = value
        first += count
    return joined
