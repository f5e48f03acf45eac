"""Where a network leaves the range of fp16: the largest magnitude of every value of its graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from glora_deploy.errors import NonFiniteError

from .runtime import OnnxSession
from .skeleton import layer_of

FP16_MAX = 65504.0

_BATCH = 8  # bounds the memory; a maximum over batches is the maximum over images
_PREFIX = "largest:"


class Overflow(NamedTuple):
    """A node that reads or writes a value too large for fp16."""

    layer: str
    """Dotted timm layer; empty for the network itself."""
    op: str
    """ONNX operator."""
    max_abs: float
    """Largest magnitude among what the node reads and writes."""
    node: str
    """Name in the graph, as :func:`.half.to_precision` takes it in ``keep_fp32``."""


def find_overflow(
    path: Path, images: NDArray[np.float32], *, limit: float = FP16_MAX / 2
) -> list[Overflow]:
    """Run a float32 graph on images and list the nodes whose values fp16 would not hold.

    Args:
        path: An fp32 model from :func:`.to_onnx.write_onnx`.
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
        max_abs = max(magnitudes, default=0.0)
        if not np.isfinite(max_abs):
            where = layer or "the network"
            raise NonFiniteError(f"{where}: {node.op_type} must be finite in fp32, got {max_abs}")
        if max_abs > limit:
            found.append(Overflow(layer, node.op_type, max_abs, node.name))
    return found


def _largest_magnitudes(
    model: onnx.ModelProto, folder: Path, images: NDArray[np.float32]
) -> Mapping[str, float]:
    session = OnnxSession(_with_magnitudes(model), folder)
    largest: dict[str, float] = {}
    for start in range(0, len(images), _BATCH):
        for output, value in session.all_outputs(images[start : start + _BATCH]).items():
            if output.startswith(_PREFIX):
                name = output.removeprefix(_PREFIX)
                # np.maximum, unlike max, keeps a NaN.
                largest[name] = float(np.maximum(largest.get(name, 0.0), value))
    return largest


def _with_magnitudes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one more scalar output, ``max |x|``, for every float value it computes."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    computed = [graph.input[0].name, *(name for node in graph.node for name in node.output)]
    dtypes[graph.input[0].name] = TensorProto.FLOAT
    for name in computed:
        if dtypes.get(name) == TensorProto.FLOAT:
            magnitude, output = f"magnitude:{name}", f"{_PREFIX}{name}"
            graph.node.add().CopyFrom(helper.make_node("Abs", [name], [magnitude]))
            graph.node.add().CopyFrom(
                helper.make_node("ReduceMax", [magnitude], [output], keepdims=0)
            )
            graph.output.add().CopyFrom(
                helper.make_tensor_value_info(output, TensorProto.FLOAT, [])
            )
    return probed
