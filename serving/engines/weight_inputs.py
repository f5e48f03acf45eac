"""An exported graph turned so that the weights of a task are inputs, and the rest a mapped file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from glora_deploy.store.mapped_safetensors import TensorMap, read_layout

from ..errors import LoadError
from .network import Slot

N_CLASSES = "n_classes"
"""The head's rows, and the logits' columns: any number."""


def with_weight_inputs(
    graph: onnx.ModelProto, adapted: Collection[str], head: Collection[str]
) -> tuple[onnx.ModelProto, list[Slot]]:
    """The graph with the adapted weights and the head as inputs.

    A weight that the graph only reads transposed becomes an input in that layout: merging into it
    costs nothing more, and no run has to turn it round.

    Args:
        graph: As an export wrote it, weights under their state-dict names. Not modified.
        adapted: Names of the tensors that deltas adapt; those that the graph does not read are
            left out.
        head: Names of the classifier's tensors.

    Returns:
        The graph, and its adapted inputs in graph order.

    Raises:
        LoadError: If the graph does not read a tensor of the head, or computes something else than
            logits from images.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    require_plain(model.graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    if missing := sorted(set(head) - weights.keys()):
        raise LoadError(f"the graph must read {missing[0]}, got {len(weights)} other tensors")
    slots = _slots(model.graph, [weights[name] for name in weights if name in adapted])
    inputs: list[tuple[str, list[int | str]]] = [(s.name, list(s.shape)) for s in slots]
    inputs += [(name, [N_CLASSES, *weights[name].dims[1:]]) for name in weights if name in head]
    for name, shape in inputs:
        dtype = weights[name].data_type
        model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    gone = {name for name, _ in inputs}
    keep(model.graph.initializer, lambda weight: weight.name not in gone)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = N_CLASSES
    # Shapes that were inferred for the number of classes it was traced with.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    return model, slots


def point_at_backbone(model: onnx.ModelProto, weights: Path, frozen: TensorMap) -> None:
    """Let every weight that is still the graph's own lie in the backbone's file; in place.

    Args:
        model: As from ``with_weight_inputs``.
        weights: The backbone's safetensors file.
        frozen: The same, mapped.

    Raises:
        LoadError: If the backbone has no such tensor, or of another shape.
    """
    places = read_layout(weights)
    for weight in model.graph.initializer:
        if weight.name not in places:
            if weight.data_location == TensorProto.EXTERNAL:
                raise LoadError(f"the backbone must hold {weight.name}, which its graph reads")
            continue
        place = places[weight.name]
        if place.shape != tuple(weight.dims):
            raise LoadError(
                f"{weight.name} must have shape {tuple(weight.dims)} as in the graph, "
                f"got {place.shape} in the backbone"
            )
        dtype = helper.tensor_dtype_to_np_dtype(weight.data_type)
        if place.dtype != dtype:
            with np.errstate(over="ignore"):  # the export was proven with these very numbers
                rounded = frozen[weight.name].astype(dtype)
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
            continue
        for field in ("raw_data", "float_data", "external_data"):
            weight.ClearField(field)
        weight.data_location = TensorProto.EXTERNAL
        about = {"location": weights.name, "offset": place.offset, "length": place.size_bytes}
        for key, value in about.items():
            weight.external_data.add(key=key, value=str(value))


def with_constants(model: onnx.ModelProto, names: Collection[str], place: str) -> onnx.ModelProto:
    """The graph with these inputs as initializers again, their numbers to be given at its start.

    Args:
        model: As from ``point_at_backbone``. Not modified.
        names: Of inputs.
        place: A file beside which the graph is loaded: ONNX Runtime wants one to be named for
            numbers that lie outside, also where it is given them in memory and reads none.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in model.graph.input:
        if value.name in names:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            weight = fixed.graph.initializer.add(
                name=value.name, data_type=value.type.tensor_type.elem_type, dims=shape
            )
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=place)
    keep(fixed.graph.input, lambda value: value.name not in names)
    return fixed


def require_plain(graph: onnx.GraphProto) -> None:
    """Check that a graph maps images to logits.

    Raises:
        LoadError: If it does not.
    """
    weights = {weight.name for weight in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    if (inputs, outputs) != (["image"], ["logits"]):
        raise LoadError(f"the graph must map image to logits, got {inputs} to {outputs}")


def _slots(graph: onnx.GraphProto, weights: Sequence[TensorProto]) -> list[Slot]:
    """The slots of these weights; nodes that only transpose one are taken out of the graph."""
    readers: dict[str, list[onnx.NodeProto]] = {weight.name: [] for weight in weights}
    for node in graph.node:
        for name in readers.keys() & set(node.input):
            readers[name].append(node)
    slots = []
    turned: dict[str, str] = {}
    for weight in weights:
        name, shape = weight.name, tuple(weight.dims)
        transposed = bool(readers[name]) and all(map(is_transpose, readers[name]))
        if transposed:
            turned |= {node.output[0]: name for node in readers[name]}
        shape = shape[::-1] if transposed else shape
        slots.append(Slot(name=name, shape=shape, transposed=transposed))
    keep(graph.node, lambda node: node.output[0] not in turned)
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read in turned:
                node.input[index] = turned[read]
    return slots


def is_transpose(node: onnx.NodeProto) -> bool:
    """Whether a node turns a matrix round."""
    order: Mapping[str, Iterable[int]] = {a.name: a.ints for a in node.attribute}
    return node.op_type == "Transpose" and list(order.get("perm", ())) == [1, 0]


def keep(messages: Any, wanted: Callable[[Any], bool]) -> None:
    """Drop the others from a repeated field."""
    kept = [message for message in messages if wanted(message)]
    del messages[:]
    messages.extend(kept)
