"""A network traced to a skeleton: the one module that drives torch's ONNX exporter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import DeduplicateHashedInitializersPass
from onnxscript.optimizer import optimize_ir
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from glora_deploy.errors import ExportError
from glora_deploy.store.export_record import WEIGHTS_FILE

from .graph_cache import OPSET, SCOPES, UNREAD

_RANDOM_OPS = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def trace_graph(
    model: nn.Module, input_size: tuple[int, int, int], *, opset: int = OPSET
) -> onnx.ModelProto:
    """Trace a network to an fp32 ONNX graph whose weights are names, dtypes and shapes only.

    While the graph is optimised its weights are inputs of unknown value, so no pass can fold,
    transpose, fuse or merge them, whatever numbers ``model`` holds.

    Args:
        model: A float32 network in evaluation mode, images ``(n, c, h, w)`` to logits
            ``(n, n_classes)``. Not modified.
        input_size: ``(c, h, w)`` of one image.
        opset: ONNX operator set to write.

    Returns:
        A graph from ``image (batch, c, h, w)`` to ``logits (batch, n_classes)``, any batch size.

    Raises:
        ValueError: If the model is in training mode or holds float tensors of another type.
        ExportError: If the network cannot be traced, holds one tensor under two names, would lose
            a tensor of its state dict, or has a random operator left.
    """
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, *input_size, device=next(model.parameters()).device)
    return trace_inputs(model, {"image": example}, ({0: batch},), opset=opset)


def trace_inputs(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    dynamic_shapes: tuple[Mapping[int, torch.export.Dim], ...],
    *,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """As ``trace_graph``, for a network of any inputs.

    Args:
        model: A float32 network in evaluation mode, whose one output is logits
            ``(n, n_classes)``. Not modified.
        inputs: Example of each by name, in the order that ``forward`` takes them; a tensor each.
        dynamic_shapes: Of each, the axes that may have any length.
        opset: ONNX operator set to write.

    Raises:
        ValueError: As ``trace_graph``, or if one tensor is the example of two inputs.
        ExportError: As ``trace_graph``.
    """
    if len({id(example) for example in inputs.values()}) < len(inputs):
        # The exporter would take one input for both, and say nothing.
        raise ValueError(f"{', '.join(inputs)}: must be a tensor each, got one for two")
    _require_plain(model)
    program = _trace(model, inputs, dynamic_shapes, opset)
    graph_model = program.model
    weights = _weights_to_inputs(graph_model.graph, model)
    optimize_ir(graph_model)
    _make_contiguous(graph_model.graph)
    DeduplicateHashedInitializersPass()(graph_model)
    _inputs_to_weights(graph_model.graph, weights)
    _require_complete(graph_model.graph, model, program)
    _require_deterministic(graph_model.graph)
    _strip_metadata(graph_model)
    unread = sorted(model.state_dict().keys() - graph_model.graph.initializers.keys())
    graph_model.metadata_props[UNREAD] = json.dumps(unread)
    return ir.to_proto(graph_model)


def _require_plain(model: nn.Module) -> None:
    training = [name or "the model" for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"{training[0]} must be in evaluation mode, got training. Call eval().")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"{name}: dtype must be torch.float32, got {tensor.dtype}")
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name:
            # Only one of the two would be read, and a merged delta may have changed the other.
            raise ExportError(f"{name} and {other}: must be two tensors, got one. Untie them.")


def _trace(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    dynamic_shapes: tuple[Mapping[int, torch.export.Dim], ...],
    opset: int,
) -> torch.onnx.ONNXProgram:
    try:
        return _export(model, inputs, dynamic_shapes, opset)
    except torch.onnx.OnnxExporterError as error:
        fused: list[Any] = [m for m in model.modules() if getattr(m, "fused_attn", False)]
        if not fused:
            raise _refusal(model, error) from error
    # The exporter knows torch's fused attention over four axes only, and Hiera has five; timm's
    # blocks can spell attention out as well.
    for block in fused:
        block.fused_attn = False
    try:
        return _export(model, inputs, dynamic_shapes, opset)
    except torch.onnx.OnnxExporterError as error:
        raise _refusal(model, error) from error
    finally:
        for block in fused:
            block.fused_attn = True


def _export(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    dynamic_shapes: tuple[Mapping[int, torch.export.Dim], ...],
    opset: int,
) -> torch.onnx.ONNXProgram:
    # The fused attention of torch's CPU lays its output out in memory as the exporter's
    # decomposition does not, so some reshapes after it (timm's vit_relpos) fail.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # Of axes that are as long as each other in two inputs, the first gives the name.
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=dynamic_shapes,
        )
    assert program is not None  # only the TorchScript exporter returns nothing
    return program


def _refusal(model: nn.Module, error: Exception) -> ExportError:
    reason = str(error.__cause__ or error).strip().splitlines()[0]
    return ExportError(f"{type(model).__name__}: torch.onnx.export must trace it, got: {reason}")


def _weights_to_inputs(graph: ir.Graph, model: nn.Module) -> list[ir.Value]:
    weights = []
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name in graph.initializers:
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
            weights.append(value)
    return weights


def _make_contiguous(graph: ir.Graph) -> None:
    """Lay folded constants out row by row: a transposed one cannot be hashed."""
    for name, value in graph.initializers.items():
        if value.const_value is None:
            continue
        array = value.const_value.numpy()
        if not array.flags.c_contiguous:
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)


def _inputs_to_weights(graph: ir.Graph, weights: list[ir.Value]) -> None:
    for value in weights:
        graph.inputs.remove(value)
        if not value.uses():
            continue
        assert value.name is not None
        assert value.dtype is not None
        assert isinstance(value.shape, ir.Shape)
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE, None, None, value.dtype, shape=value.shape, name=value.name
        )
        graph.initializers.add(value)


def _require_complete(graph: ir.Graph, model: nn.Module, program: torch.onnx.ONNXProgram) -> None:
    """Refuse a graph that lost a tensor the traced network reads: a new task would not reach it."""
    exported = program.exported_program
    assert exported is not None
    signature = exported.graph_signature
    traced = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    unused = {
        traced[node.name]
        for node in exported.graph.find_nodes(op="placeholder")
        if node.name in traced and not node.users
    }
    floating = {name for name, t in model.state_dict().items() if t.is_floating_point()}
    missing = sorted(floating - unused - graph.initializers.keys())
    if missing:
        raise ExportError(
            f"ONNX graph: every tensor of the state dict must be an initializer, got none for "
            f"{', '.join(missing[:3])} ({len(missing)} in all). Rename what is named as the "
            "input or the output of the graph."
        )
    if (output := graph.outputs[0].name) != "logits":
        raise ExportError(f"ONNX graph: the output must be logits, got {output}. Rename logits.")


def _require_deterministic(graph: ir.Graph) -> None:
    found = sorted({f"{node.op_type} {node.name}" for node in graph if node.op_type in _RANDOM_OPS})
    if found:
        raise ExportError(f"ONNX graph: nodes must be deterministic, got {', '.join(found[:3])}")


def _strip_metadata(model: ir.Model) -> None:
    """Keep which layer a node came from; drop stack traces, which show the exporter's paths."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        node.doc_string = None
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
        for output in node.outputs:
            output.metadata_props.clear()
