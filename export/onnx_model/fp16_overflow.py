"""Where a network leaves the range of fp16: the largest magnitude of every value of its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from glora_deploy.errors import NonFiniteError

from .graph_cache import layer_of
from .ort_session import OnnxSession

FP16_MAX = 65504.0

_LARGEST, _TOTAL = "largest:", "total:"


class Overflow(NamedTuple):
    """A node that reads or writes a value too large for fp16."""

    layer: str
    """Dotted timm layer; empty for the network itself."""
    op: str
    """ONNX operator."""
    max_abs: float
    """Largest magnitude among what the node reads and writes."""
    node: str
    """Name in the graph, as :func:`.half_precision.to_precision` takes it in ``keep_fp32``."""


def find_overflow(
    path: Path, images: NDArray[np.float32], *, limit: float = FP16_MAX / 2
) -> list[Overflow]:
    """Run a float32 graph on images and list the nodes whose values fp16 would not hold.

    Args:
        path: An fp32 model from :func:`.write.write_onnx`.
        images: Preprocessed images ``(n, c, h, w)``, as the task will see them.
        limit: Largest magnitude allowed. Half the range by default, since other images go further.

    Returns:
        In graph order; empty if all is well. Weights are not looked at.

    Raises:
        NonFiniteError: If the float32 graph itself gives NaN or infinity.
    """
    model = onnx.load_model(path, load_external_data=False)
    largest = _largest_magnitudes(model, path.parent, images)
    found = []
    for node in model.graph.node:
        layer = layer_of(node)
        magnitudes = [largest[name] for name in (*node.input, *node.output) if name in largest]
        max_abs = float(np.max(magnitudes, initial=0.0))
        if not np.isfinite(max_abs):
            where = layer or "the network"
            raise NonFiniteError(f"{where}: {node.op_type} must be finite in fp32, got {max_abs}")
        if max_abs > limit:
            found.append(Overflow(layer, node.op_type, max_abs, node.name))
    return found


def _largest_magnitudes(
    model: onnx.ModelProto, folder: Path, images: NDArray[np.float32]
) -> Mapping[str, float]:
    names = _float_values(model.graph)
    session = OnnxSession(_with_magnitudes(model, names), folder=folder, lean=True)
    largest = dict.fromkeys(names, 0.0)
    # One by one: a probed graph keeps every activation to its end, 300 MB an image for ViT-B.
    for image in images:
        outputs = session.all_outputs(image[None])
        for name in names:
            total = outputs[f"{_TOTAL}{name}"]
            # A maximum may pass over NaN, a sum cannot.
            found = outputs[f"{_LARGEST}{name}"] if np.isfinite(total) else total
            largest[name] = float(np.maximum(largest[name], found))
    return largest


def _float_values(graph: onnx.GraphProto) -> list[str]:
    """The images and every float32 value that a node computes, in graph order."""
    values = (*graph.input, *graph.value_info, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    computed = (name for node in graph.node for name in node.output)
    return [name for name in (graph.input[0].name, *computed) if name in floats]


def _with_magnitudes(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with two more scalar outputs for each value: the maximum and the sum of ``|x|``.

    Only scalars leave the graph, so the memory of a value is free again once it has been read.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    for name in names:
        magnitude, largest, total = f"magnitude:{name}", f"{_LARGEST}{name}", f"{_TOTAL}{name}"
        probed.graph.node.extend(
            [
                helper.make_node("Abs", [name], [magnitude]),
                helper.make_node("ReduceMax", [magnitude], [largest], keepdims=0),
                helper.make_node("ReduceSum", [magnitude], [total], keepdims=0),
            ]
        )
        probed.graph.output.extend(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, [])
            for output in (largest, total)
        )
    return probed
