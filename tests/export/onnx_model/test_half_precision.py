from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from glora_deploy.export.onnx_model.graph_cache import layer_of
from glora_deploy.export.onnx_model.half_precision import HalfPrecision, to_precision
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.write import write_onnx
from onnx_networks import (
    KINDS,
    make_images,
    make_network,
    make_skeleton,
    torch_logits,
    write_weights,
)

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
PRECISIONS: dict[HalfPrecision, tuple[int, torch.dtype]] = {
    "fp16": (HALF, torch.float16),
    "bf16": (BFLOAT, torch.bfloat16),
}
# Of the spread of the logits. In fp16, rounding the weights alone costs efficientnet_lite, with its
# 49 layers the deepest, 0.016, and torch's own half() 0.037; bf16 has an eighth of the precision.
RTOL: dict[HalfPrecision, float] = {"fp16": 0.04, "bf16": 0.15}
COSINE: dict[HalfPrecision, float] = {"fp16": 0.9995, "bf16": 0.995}


def export(folder: Path, kind: str, precision: HalfPrecision) -> Path:
    write_weights(make_network(kind), folder, PRECISIONS[precision][1])
    return write_onnx(folder, to_precision(make_skeleton(kind), precision), {})


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value, as the graph declares it."""
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    declared = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**declared, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def make_graph(
    nodes: list[onnx.NodeProto],
    *,
    constants: dict[str, NDArray[np.float32]] | None = None,
    weights: dict[str, list[int]] | None = None,
    types: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A skeleton written by hand, images ``(batch, 4)`` to logits ``(batch, 4)``."""
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in (constants or {}).items()]
    for name, shape in (weights or {}).items():
        tensor = TensorProto(name=name, data_type=FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="model.safetensors")
        tensors.append(tensor)
    ends = [helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in ("image", "logits")]
    names = [name for node in nodes for name in node.output if name != "logits"]
    values = [helper.make_tensor_value_info(n, (types or {}).get(n, FLOAT), None) for n in names]
    for node in nodes:
        node.name = f"node_{node.output[0]}"
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors, value_info=values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_scale(factor: float) -> onnx.ModelProto:
    """Images times a constant, then an operator that is none of arithmetic."""
    return make_graph(
        [
            helper.make_node("Mul", ["image", "scale"], ["scaled"]),
            helper.make_node("Relu", ["scaled"], ["logits"]),
        ],
        constants={"scale": np.float32([factor])},
    )


def steps_of(model: onnx.ModelProto) -> list[str]:
    """Each node as ``op:type``, the type being that of its first output."""
    types = types_of(model)
    names = {FLOAT: "fp32", HALF: "fp16", BFLOAT: "bf16"}
    return [f"{n.op_type}:{names.get(types[n.output[0]], 'other')}" for n in model.graph.node]


# On whole networks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_keep_their_names_and_become_half(kind: str, precision: HalfPrecision) -> None:
    skeleton = make_skeleton(kind)
    expected = {
        weight.name: (PRECISIONS[precision][0], tuple(weight.dims))
        for weight in skeleton.graph.initializer
        if weight.data_location == TensorProto.EXTERNAL
    }
    found = {
        weight.name: (weight.data_type, tuple(weight.dims))
        for weight in to_precision(skeleton, precision).graph.initializer
        if weight.data_location == TensorProto.EXTERNAL
    }
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_checker_passes_and_names_are_unique(
    tmp_path: Path, kind: str, precision: HalfPrecision
) -> None:
    model = onnx.load(export(tmp_path, kind, precision))
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    names = Counter(node.name for node in model.graph.node)
    assert set(names.values()) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_input_output_norms_and_softmax_are_float32(kind: str) -> None:
    model = to_precision(make_skeleton(kind), "fp16")
    types = types_of(model)
    full = {"LayerNormalization", "BatchNormalization", "Softmax"}
    nodes = [node for node in model.graph.node if node.op_type in full]
    assert {types[name] for node in nodes for name in (*node.input, *node.output)} == {FLOAT}
    assert nodes
    assert (types["image"], types["logits"]) == (FLOAT, FLOAT)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_half(kind: str) -> None:
    model = to_precision(make_skeleton(kind), "fp16")
    types = types_of(model)
    nodes = [node for node in model.graph.node if node.op_type in {"MatMul", "Conv", "Gemm"}]
    assert {types[name] for node in nodes for name in (*node.input, *node.output)} == {HALF}


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_is_cast_twice(kind: str) -> None:
    model = to_precision(make_skeleton(kind), "fp16")
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    sources = Counter(cast.input[0] for cast in casts)
    assert set(sources.values()) == {1}
    assert not sources.keys() & {cast.output[0] for cast in casts}


def test_a_cast_can_be_traced_to_the_layer_that_needs_it() -> None:
    model = to_precision(make_skeleton("vit"), "fp16")
    norm = next(n for n in model.graph.node if n.name == "cast_blocks.1.norm1.weight_fp32")
    assert layer_of(norm) == "blocks.1.norm1"


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_of_onnx_runtime_agrees_with_torch_in_fp32(tmp_path: Path, kind: str) -> None:
    images = make_images(kind, 9)
    logits = OnnxSession(export(tmp_path, kind, "fp16")).logits(images)
    assert_agrees(logits, torch_logits(make_network(kind), images), "fp16")


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_true_half_arithmetic_agrees_with_torch_in_fp32(
    tmp_path: Path, kind: str, precision: HalfPrecision
) -> None:
    # ONNX Runtime computes fp16 in fp32 on a CPU and runs no bf16; the reference rounds each step.
    images = make_images(kind, 3)
    model = onnx.load(export(tmp_path, kind, precision))
    (logits,) = ReferenceEvaluator(model).run(None, {"image": images})
    assert_agrees(np.asarray(logits), torch_logits(make_network(kind), images), precision)


def assert_agrees(
    found: NDArray[np.float32], expected: NDArray[np.float32], precision: HalfPrecision
) -> None:
    assert found.dtype == np.float32
    error = np.abs(found - expected).max()
    assert 0 < error < RTOL[precision] * expected.std()
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / norms).min() > COSINE[precision]
    top = np.sort(expected, axis=1)
    decided = top[:, -1] - top[:, -2] > 2 * error
    assert decided.any()
    np.testing.assert_array_equal(found.argmax(1)[decided], expected.argmax(1)[decided])


def test_the_skeleton_is_not_modified() -> None:
    skeleton = make_skeleton("swin")
    before = skeleton.SerializeToString()
    to_precision(skeleton, "fp16", ["MatMul"])
    assert skeleton.SerializeToString() == before


# On graphs written by hand


def test_a_listed_operator_and_a_listed_node_compute_in_float32() -> None:
    graph = make_graph(
        [
            helper.make_node("Tanh", ["image"], ["a"]),
            helper.make_node("Sigmoid", ["a"], ["b"]),
            helper.make_node("Tanh", ["b"], ["c"]),
            helper.make_node("Relu", ["c"], ["logits"]),
        ]
    )
    names = steps_of(to_precision(graph, "fp16", ["Sigmoid", "node_c"]))
    assert names == [
        "Cast:fp16",
        "Tanh:fp16",
        "Cast:fp32",
        "Sigmoid:fp32",
        "Tanh:fp32",
        "Cast:fp16",
        "Relu:fp16",
        "Cast:fp32",
    ]


def test_arithmetic_that_only_float32_nodes_read_is_float32() -> None:
    graph = make_graph(
        [
            helper.make_node("Mul", ["image", "image"], ["square"]),
            helper.make_node("Add", ["square", "eps"], ["shifted"]),
            helper.make_node("Sqrt", ["shifted"], ["root"]),
            helper.make_node("Mul", ["image", "root"], ["normed"]),
            helper.make_node("Relu", ["normed"], ["logits"]),
        ],
        constants={"eps": np.float32([1e-3])},
    )
    steps = steps_of(to_precision(graph, "fp16"))
    assert steps[:3] == ["Mul:fp32", "Add:fp32", "Sqrt:fp32"]
    assert steps[-3:] == ["Mul:fp16", "Relu:fp16", "Cast:fp32"]


def test_arithmetic_that_only_the_output_reads_is_float32() -> None:
    graph = make_graph(
        [
            helper.make_node("MatMul", ["image", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["logits"]),
        ],
        weights={"w": [4, 4], "b": [4]},
    )
    steps = steps_of(to_precision(graph, "fp16"))
    assert steps == ["Cast:fp16", "MatMul:fp16", "Cast:fp32", "Cast:fp32", "Add:fp32"]


def test_a_constant_is_converted_and_not_cast() -> None:
    graph = make_scale(0.1)
    model = to_precision(graph, "fp16")
    (scale,) = model.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(scale), np.float16([0.1]))
    assert steps_of(model) == ["Cast:fp16", "Mul:fp16", "Relu:fp16", "Cast:fp32"]


@pytest.mark.parametrize("value", [1e5, -3e38, 1e-9])
def test_a_node_reads_in_float32_a_constant_that_half_cannot_hold(value: float) -> None:
    model = to_precision(make_scale(value), "fp16")
    assert steps_of(model) == ["Mul:fp32", "Cast:fp16", "Relu:fp16", "Cast:fp32"]
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(model.graph.initializer[0]), np.float32([value])
    )


@pytest.mark.parametrize("value", [-np.inf, 0.0])
def test_infinity_and_zero_are_held_exactly(value: float) -> None:
    assert "Mul:fp16" in steps_of(to_precision(make_scale(value), "fp16"))


def test_an_input_that_onnx_defines_for_float32_alone_stays_float32() -> None:
    graph = make_graph(
        [
            helper.make_node("Unsqueeze", ["image", "axes"], ["row"]),
            helper.make_node("Resize", ["row", "", "scales"], ["wide"], mode="linear"),
            helper.make_node("ReduceMax", ["wide", "axes"], ["logits"], keepdims=0),
        ],
        constants={"scales": np.float32([1, 2, 1])},
    )
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([1]), "axes"))
    model = to_precision(graph, "fp16")
    onnx.checker.check_model(model, full_check=True)
    assert "Resize:fp16" in steps_of(model)
    assert types_of(model)["scales"] == FLOAT


def test_an_operator_that_onnx_does_not_define_for_bf16_computes_in_float32() -> None:
    graph = make_graph(
        [
            helper.make_node("HardSwish", ["image"], ["a"]),
            helper.make_node("Relu", ["a"], ["logits"]),
        ]
    )
    assert "HardSwish:fp16" in steps_of(to_precision(graph, "fp16"))
    assert "HardSwish:fp32" in steps_of(to_precision(graph, "bf16"))
    assert "Relu:bf16" in steps_of(to_precision(graph, "bf16"))


def test_integers_become_floats_in_float32_and_stay_integers_otherwise() -> None:
    graph = make_graph(
        [
            helper.make_node("Shape", ["image"], ["sizes"]),
            helper.make_node("Cast", ["sizes"], ["numbers"], to=FLOAT),
            helper.make_node("ReduceMax", ["numbers"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["image", "largest"], ["scaled"]),
            helper.make_node("Relu", ["scaled"], ["logits"]),
        ],
        types={"sizes": TensorProto.INT64},
    )
    steps = steps_of(to_precision(graph, "fp16"))
    assert "Shape:other" in steps
    assert steps[steps.index("Shape:other") + 1] == "Cast:fp32"
    assert steps[-3:] == ["Mul:fp16", "Relu:fp16", "Cast:fp32"]


def test_a_node_that_reads_no_float_writes_what_its_attribute_says() -> None:
    ones = onnx.numpy_helper.from_array(np.float32([1]))
    graph = make_graph(
        [
            helper.make_node("Shape", ["image"], ["sizes"]),
            helper.make_node("ConstantOfShape", ["sizes"], ["ones"], value=ones),
            helper.make_node("MatMul", ["image", "w"], ["product"]),
            helper.make_node("Max", ["product", "ones"], ["largest"]),
            helper.make_node("Relu", ["largest"], ["logits"]),
        ],
        weights={"w": [4, 4]},
        types={"sizes": TensorProto.INT64},
    )
    model = to_precision(graph, "fp16")
    steps = steps_of(model)
    assert steps[steps.index("ConstantOfShape:fp32") + 1 :] == [
        "MatMul:fp16",
        "Cast:fp16",
        "Max:fp16",
        "Relu:fp16",
        "Cast:fp32",
    ]
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_a_weight_read_in_both_types_is_stored_half_and_cast_once() -> None:
    graph = make_graph(
        [
            helper.make_node("Relu", ["image"], ["a"]),
            helper.make_node("Mul", ["a", "w"], ["b"]),
            helper.make_node("LayerNormalization", ["b", "w"], ["c"]),
            helper.make_node("LayerNormalization", ["c", "w"], ["logits"]),
        ],
        weights={"w": [4]},
    )
    model = to_precision(graph, "fp16", ["node_c"])
    assert types_of(model)["w"] == HALF
    assert [n.output[0] for n in model.graph.node if n.input[0] == "w"] == ["w_fp32"]


def test_a_float32_output_needs_no_cast() -> None:
    graph = make_graph([helper.make_node("Softmax", ["image"], ["logits"])])
    assert steps_of(to_precision(graph, "fp16")) == ["Softmax:fp32"]


def test_a_name_that_is_neither_node_nor_operator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep_fp32 must name nodes .* got 'node_typo'"):
        to_precision(make_skeleton("vit"), "fp16", ["Softmax", "node_typo"])
