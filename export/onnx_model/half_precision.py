"""A skeleton in half precision: which nodes stay in float32, and the casts between the two."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

HalfPrecision = Literal["fp16", "bf16"]

FULL_PRECISION_OPS = frozenset(
    {
        # Normalisations: squares overflow fp16 from 256 on, and a mean of many terms loses digits.
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "RMSNormalization",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "GlobalAveragePool",
        # Exponentials and what turns a small error into a large one.
        "Exp",
        "Log",
        "LogSoftmax",
        "Pow",
        "Reciprocal",
        "ReduceLogSumExp",
        "Softmax",
        "Sqrt",
        # To and from integers: coordinates above 2048 have no exact half.
        "Cast",
    }
)
"""Operators that compute in float32 whatever the precision of the weights."""

_ARITHMETIC = frozenset({"Abs", "Add", "Div", "Max", "Min", "Mul", "Neg", "Sub"})
_DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def to_precision(
    skeleton: onnx.ModelProto, precision: HalfPrecision, keep_fp32: Collection[str] = ()
) -> onnx.ModelProto:
    """The same graph with half-precision weights and arithmetic, float32 input and output.

    Normalisations, softmax and the rest of ``FULL_PRECISION_OPS`` compute in float32, and so do
    arithmetic that only they or the output read, a node that reads a constant which half precision
    cannot hold, and an operator that ONNX does not define for the type. Every value is cast from
    the type it was computed in, at most once to each type, so no digits are lost twice.

    Args:
        skeleton: As from :func:`.trace.trace_graph`. Not modified.
        precision: Type of every weight: ``model.safetensors`` must hold each in this type.
        keep_fp32: Names of further nodes, or operator types, that compute in float32.

    Raises:
        ValueError: If a name of ``keep_fp32`` is neither a node of the graph nor an ONNX operator.
    """
    model = ir.from_proto(skeleton)
    _require_known(model.graph, keep_fp32)
    half = _DTYPES[precision]
    full = _full_precision_nodes(model.graph, half, FULL_PRECISION_OPS.union(keep_fp32))
    for weight in model.graph.initializers.values():
        if isinstance(weight.const_value, ir.ExternalTensor):
            _store_as(weight, half)
    _Caster(model, half, precision, full).run()
    return ir.to_proto(model)


def _require_known(graph: ir.Graph, names: Collection[str]) -> None:
    nodes = {node.name for node in graph}
    unknown = sorted(name for name in names if name not in nodes and not onnx.defs.has(name))
    if unknown:
        raise ValueError(
            f"keep_fp32 must name nodes of the graph or ONNX operators, got {unknown[0]!r}"
        )


def _full_precision_nodes(
    graph: ir.Graph, half: ir.DataType, listed: Collection[str]
) -> set[ir.Node]:
    full: set[ir.Node] = set()
    for node in reversed(graph):
        readers = [use.node for output in node.outputs for use in output.uses()]
        if (
            node.op_type in listed
            or node.name in listed
            or (node.op_type in _ARITHMETIC and full.issuperset(readers))
            or any(_loses_constant(value, half) for value in node.inputs)
        ):
            full.add(node)
    return full


def _loses_constant(value: ir.Value | None, half: ir.DataType) -> bool:
    """Whether half precision turns a constant of the graph into infinity or zero."""
    if value is None or value.dtype != ir.DataType.FLOAT or not _is_constant(value):
        return False
    assert value.const_value is not None
    exact = value.const_value.numpy()
    with np.errstate(over="ignore", under="ignore"):
        stored = exact.astype(half.numpy())
    return bool(
        np.any((np.isfinite(exact) & ~np.isfinite(stored)) | ((exact != 0) & (stored == 0)))
    )


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor)


def _store_as(weight: ir.Value, dtype: ir.DataType) -> None:
    stored = weight.const_value
    assert isinstance(stored, ir.ExternalTensor)
    weight.dtype = dtype
    weight.const_value = ir.ExternalTensor(
        stored.location, None, None, dtype, shape=stored.shape, name=stored.name
    )


class _Caster:
    """One walk over a graph in order, giving each node the types it computes in."""

    def __init__(
        self, model: ir.Model, half: ir.DataType, suffix: str, full: Collection[ir.Node]
    ) -> None:
        self.graph = model.graph
        self.opsets = model.opset_imports
        self.half = half
        self.suffix = {half: suffix, ir.DataType.FLOAT: "fp32"}
        self.full = full
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self.graph):
            self._convert(node)
        self._restore_outputs()
        for name, value in list(self.graph.initializers.items()):
            if not value.uses():
                del self.graph.initializers[name]

    def _convert(self, node: ir.Node) -> None:
        floats = {ir.DataType.FLOAT, self.half}
        schema = onnx.defs.get_schema(node.op_type, self.opsets[node.domain], node.domain)
        reads_float = False
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in floats:
                reads_float = True
                dtype = self._compute_type(node, schema.inputs, index)
                node.replace_input_with(index, self._as(value, dtype, node))
        for index, output in enumerate(node.outputs):
            # A node that reads no float says by an attribute what it writes: left as it is.
            if reads_float and output.dtype == ir.DataType.FLOAT:
                output.dtype = self._compute_type(node, schema.outputs, index)

    def _compute_type(
        self, node: ir.Node, formals: Sequence[OpSchema.FormalParameter], index: int
    ) -> ir.DataType:
        formal = formals[min(index, len(formals) - 1)]  # the last one repeats if variadic
        allowed = f"tensor({self.half.name.lower()})" in formal.types
        return self.half if allowed and node not in self.full else ir.DataType.FLOAT

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            if _is_constant(value):
                self.casts[value, dtype] = self._constant(value, dtype)
            else:
                cast = self._cast(value, dtype, reader)
                self.graph.insert_before(reader, cast)
                self.casts[value, dtype] = cast.outputs[0]
        return self.casts[value, dtype]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        name = f"{value.name}_{self.suffix[dtype]}"
        tensor = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=name)
        constant = ir.val(name, const_value=tensor)
        self.graph.initializers.add(constant)
        return constant

    def _cast(self, value: ir.Value, dtype: ir.DataType, near: ir.Node) -> ir.Node:
        name = f"{value.name}_{self.suffix[dtype]}"
        output = ir.val(name, dtype=dtype, shape=value.shape)
        cast = ir.node("Cast", [value], {"to": dtype}, outputs=[output], name=f"cast_{name}")
        cast.metadata_props.update(near.metadata_props)
        return cast

    def _restore_outputs(self) -> None:
        """The outputs keep their names and float32, whatever computes them."""
        for index, output in enumerate(self.graph.outputs):
            producer = output.producer()
            if output.dtype != self.half or producer is None:
                continue
            name, output.name = output.name, f"{output.name}_{self.suffix[self.half]}"
            cast = self._cast(output, ir.DataType.FLOAT, producer)
            cast.outputs[0].name = name
            self.graph.append(cast)
            self.graph.outputs[index] = cast.outputs[0]
