"""A graph whose weights are constants and whose rows each have the terms of a task of their own.

For a frozen linear layer ``y = w0 x + b0`` whose A is a vector or a scalar, the merged layer is::

    y = (1 + A) * (w0 x) + B_d (B_u x) + b

since A scales whole rows of ``w0``. What depends on the task, ``1 + A``, ``B_d``, ``B_u`` and the
merged ``b``, is small, and becomes an input with one entry for each row of the batch, or one for
all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import LoadError
from .weight_inputs import N_CLASSES, is_transpose, keep, require_plain

ROWS = "rows"
"""As many as there are images, or 1."""


def with_row_terms(
    graph: onnx.ModelProto, layers: Mapping[str, bool], head: Collection[str]
) -> onnx.ModelProto:
    """The graph with the terms of each row as inputs.

    Inputs of a layer are ``<layer>.scale (rows, 1, d_out)``, ``.up (rows, d_in, rank)``, ``.down
    (rank, d_out)`` for each row, and ``.shift (rows, 1, d_out)`` where it has a bias; those of the
    head ``<name>.weight (rows, d, n_classes)`` and ``.bias (rows, 1, n_classes)``.

    Args:
        graph: As an export wrote it. Not modified.
        layers: Adapted linear layers, and whether each has a bias.
        head: Names of the classifier's tensors.

    Raises:
        LoadError: If a layer is not computed image by image as one product, or the head is no
            linear layer: such a network cannot be served so.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    require_plain(model.graph)
    rewriter = _Rewriter(model.graph)
    for layer, has_bias in layers.items():
        rewriter.adapt(layer, has_bias)
    rewriter.replace_head(head)
    rewriter.finish()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = N_CLASSES
    del model.graph.value_info[:]
    del model.metadata_props[:]
    return model


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.gone: set[str] = set()
        self.nodes = list(graph.node)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
        self.by_image = {
            value.name
            for value in graph.value_info
            if len(dims := value.type.tensor_type.shape.dim) == 3 and dims[0].dim_param == batch
        }
        self.after: dict[int, list[onnx.NodeProto]] = {}

    def adapt(self, layer: str, has_bias: bool) -> None:
        """Give one linear layer its terms."""
        product = self._product(layer)
        x, plain = product.input[0], product.output[0]
        d_out, d_in = self.weights[f"{layer}.weight"].dims
        scaled, low, change, total = (
            f"{layer}/{part}" for part in ("scaled", "low", "change", "total")
        )
        added = [
            helper.make_node("Mul", [plain, f"{layer}.scale"], [scaled]),
            helper.make_node("MatMul", [x, f"{layer}.up"], [low]),
            helper.make_node("MatMul", [low, f"{layer}.down"], [change]),
            helper.make_node("Add", [scaled, change], [total]),
        ]
        self._input(f"{layer}.scale", [ROWS, 1, d_out])
        self._input(f"{layer}.up", [ROWS, d_in, f"{layer}.rank"])
        self._input(f"{layer}.down", [ROWS, f"{layer}.rank", d_out])
        for reader in self.readers[plain]:
            for index, name in enumerate(reader.input):
                if name == plain:
                    reader.input[index] = total
        if has_bias:
            bias = f"{layer}.bias"
            add = self._only_reader(bias, "Add", layer)
            if set(add.input) != {total, bias}:
                raise _cannot(layer, "its bias must be added to its product")
            add.input[list(add.input).index(bias)] = f"{layer}.shift"
            self._input(f"{layer}.shift", [ROWS, 1, d_out])
            self.gone.add(bias)
        self.after[id(product)] = added

    def replace_head(self, head: Collection[str]) -> None:
        """Let each row have a classifier of its own."""
        axis = "glora_deploy.axis"
        self.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axis))
        for weight in sorted(name for name in head if name.endswith(".weight")):
            layer = weight.removesuffix(".weight")
            product = self._only_reader(weight, "Gemm", layer)
            options = {a.name: helper.get_attribute_value(a) for a in product.attribute}
            usual = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}
            if {**usual, "transB": 0, **options} != usual or product.input[1] != weight:
                raise _cannot(layer, "the head must be a linear layer")
            _, d_in = self.weights[weight].dims
            row, scores = f"{layer}/row", f"{layer}/scores"
            added = [
                helper.make_node("Unsqueeze", [product.input[0], axis], [row]),
                helper.make_node("MatMul", [row, weight], [scores]),
            ]
            self._input(weight, [ROWS, d_in, N_CLASSES])
            if len(product.input) > 2:
                bias = product.input[2]
                shifted = f"{layer}/shifted"
                added.append(helper.make_node("Add", [scores, bias], [shifted]))
                self._input(bias, [ROWS, 1, N_CLASSES])
                scores = shifted
            added.append(helper.make_node("Squeeze", [scores, axis], [product.output[0]]))
            self.after[id(product)] = added
            product.op_type = ""  # taken out below
        if missing := set(head) - self.gone - {value.name for value in self.graph.input}:
            raise _cannot(min(missing), "the graph must read it")

    def finish(self) -> None:
        """Put the nodes in order, and leave out the weights that are inputs now."""
        nodes = []
        for node in self.nodes:
            if node.op_type:
                nodes.append(node)
            nodes += self.after.get(id(node), [])
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        keep(self.graph.initializer, lambda weight: weight.name not in self.gone)

    def _product(self, layer: str) -> onnx.NodeProto:
        """The one product of images with a layer's weight."""
        weight = f"{layer}.weight"
        turn = self._only_reader(weight, "Transpose", layer)
        product = self._only_reader(turn.output[0], "MatMul", layer)
        if not is_transpose(turn) or product.input[1] != turn.output[0]:
            raise _cannot(layer, "it must be a linear layer")
        if product.input[0] not in self.by_image:
            raise _cannot(layer, "its input must be (images, tokens, features)")
        return product

    def _only_reader(self, name: str, operator: str, layer: str) -> onnx.NodeProto:
        readers = self.readers.get(name, [])
        if [node.op_type for node in readers] != [operator]:
            raise _cannot(layer, f"{name} must be read by one {operator}")
        return readers[0]

    def _input(self, name: str, shape: list[int | str]) -> None:
        self.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.gone.add(name)


def _cannot(layer: str, why: str) -> LoadError:
    return LoadError(f"{layer}: {why}, else tasks cannot share a batch")
