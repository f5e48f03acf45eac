"""A backbone's network on ONNX Runtime, its adapted weights inputs of one graph.

Everything that no delta changes stays an initializer that lies in the backbone's own file in the
store, mapped: one backbone in memory, however many tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from glora_deploy.store.mapped_safetensors import TensorMap

from ..errors import LoadError
from ..onnx_session import Device, WeightedSession
from .network import SlotLayout
from .weight_inputs import point_at_backbone, with_constants, with_weight_inputs


@dataclass(frozen=True, slots=True)
class OnnxWeights:
    """A task's weights as a session of ONNX Runtime takes them."""

    session: WeightedSession
    inputs: dict[str, Any]
    """ONNX Runtime's values by input name; what is missing is constant in the session."""


class OnnxNetwork:
    """One architecture on ONNX Runtime.

    Args:
        graph: As an export wrote it; its numbers are not read. Not modified.
        weights: The backbone's safetensors file.
        frozen: The same, mapped.
        adapted: Names of the tensors that deltas adapt.
        head: Names of the classifier's tensors.
        threads: Threads within an operator; ONNX Runtime's own choice if None.
        device: Where it runs.

    Raises:
        LoadError: If graph, backbone and head are not of one network.
        ExportError: If ONNX Runtime refuses the graph.
        MissingDependencyError: If ONNX Runtime is missing, or has no CUDA for ``device="cuda"``.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        weights: Path,
        frozen: TensorMap,
        *,
        adapted: Collection[str],
        head: Collection[str],
        threads: int | None = None,
        device: Device = "cpu",
    ) -> None:
        model, slots = with_weight_inputs(graph, adapted, head)
        point_at_backbone(model, weights, frozen)
        types = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in model.graph.input
        }
        dtypes = {types[name] for name in (*(slot.name for slot in slots), *head)}
        if len(dtypes) != 1:
            raise LoadError(
                f"weights of the graph must have one dtype, got {sorted(map(str, dtypes))}"
            )
        self.layout = SlotLayout(slots, dtypes.pop())
        self.head = tuple(sorted(head))
        self._open = partial(WeightedSession, folder=weights.parent, threads=threads, device=device)
        self._model = model
        self._place = weights.name
        self._on_cpu = device == "cpu"
        self._session = self._open(model.SerializeToString())

    def bind(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> OnnxWeights:
        """As ``Network.bind``; on a GPU the weights are copied there."""
        arrays = {**slots, **head}
        inputs = {name: self._session.value(array) for name, array in arrays.items()}
        return OnnxWeights(self._session, inputs)

    def fix(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> OnnxWeights | None:
        """As ``Network.fix``: a session of its own, whose matrices are packed for the CPU."""
        if not self._on_cpu:
            return None
        model = with_constants(self._model, self.layout.slots, self._place)
        session = self._open(model.SerializeToString(), constants=slots)
        return OnnxWeights(session, {name: session.value(array) for name, array in head.items()})

    def run(self, weights: OnnxWeights, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``."""
        return np.asarray(weights.session.logits(images, weights.inputs), np.float32)
