"""A graph that takes decoded pixels and gives probabilities, around one that takes images."""

from __future__ import annotations

import PIL
from onnx import GraphProto, ModelProto, TensorProto, helper

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import ExportError

from .preprocessing_graph import LEVELS, PIXELS, PREFIX, names_read, preprocessing_graph

LOGITS, PROBABILITIES = "logits", "probabilities"
PILLOW = "pillow"
"""Metadata key of the release of Pillow whose pixels the graph computes."""


def with_preprocessing(skeleton: ModelProto, preprocessing: Preprocessing) -> ModelProto:
    """Put the preprocessing before a network and a softmax behind it.

    The pixels are those of the Pillow that is installed, so those of training and of parity.

    Args:
        skeleton: From ``image (n, 3, h, w)`` to ``logits (n, n_classes)``, as from
            :func:`.trace.trace_graph` or :func:`.half_precision.to_precision`. Not modified.
        preprocessing: Of the network.

    Returns:
        A graph from ``pixels (n, h, w, 3)`` uint8 to ``probabilities (n, n_classes)`` float32.

    Raises:
        ExportError: If the network has tensors of the names that are added.
    """
    before = preprocessing_graph(preprocessing, tall_first=_resizes_tall_first())
    model = ModelProto()
    model.CopyFrom(skeleton)
    graph = model.graph
    _require_apart(graph)
    del graph.node[:]
    softmax = helper.make_node("Softmax", [LOGITS], [PROBABILITIES], name=PROBABILITIES, axis=1)
    graph.node.extend([*before.node, *skeleton.graph.node, softmax])
    graph.initializer.extend(before.initializer)
    (logits,) = graph.output
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    probabilities = helper.make_tensor_value_info(
        PROBABILITIES, TensorProto.FLOAT, ["batch", classes]
    )
    graph.value_info.extend([*before.output, logits])
    graph.input[0].CopyFrom(before.input[0])
    graph.output[0].CopyFrom(probabilities)
    return model


def only_preprocessing(model: ModelProto) -> ModelProto:
    """The part of such a model that makes pixels of the network's size.

    Args:
        model: From :func:`with_preprocessing`, without or with its weights. Not modified.

    Returns:
        A model from ``pixels`` to ``LEVELS``, self-contained.

    Raises:
        ExportError: If the model has no such part.
    """
    made = [node.output[0] for node in model.graph.node]
    if LEVELS not in made:
        raise ExportError(f"the graph must have a tensor {LEVELS}, it has none. Export it again.")
    nodes = model.graph.node[: made.index(LEVELS) + 1]
    read = names_read(nodes)
    constants = [one for one in model.graph.initializer if one.name in read]
    levels = helper.make_tensor_value_info(LEVELS, TensorProto.FLOAT, [None, 3, None, None])
    graph = helper.make_graph(nodes, "preprocess", [model.graph.input[0]], [levels], constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def pillow_version() -> str:
    """The release of Pillow whose pixels :func:`with_preprocessing` computes."""
    return PIL.__version__


def _require_apart(network: GraphProto) -> None:
    """Refuse a network with names of what is added to it."""
    names = {name for node in network.node for name in (*node.input, *node.output)}
    taken = names & {PIXELS, PROBABILITIES} | {name for name in names if name.startswith(PREFIX)}
    if taken:
        raise ExportError(
            f"ONNX graph: no tensor may be named {min(taken)} beside the preprocessing. Rename it."
        )


def _resizes_tall_first() -> bool:
    """Before 13 Pillow resized along the rows first, whatever the image."""
    return int(PIL.__version__.split(".")[0]) >= 13
