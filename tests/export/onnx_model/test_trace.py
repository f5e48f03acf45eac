import copy
import json
from collections import Counter

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from glora_deploy.errors import ExportError
from glora_deploy.export.onnx_model.graph_cache import UNREAD, layer_of
from glora_deploy.export.onnx_model.trace import trace_graph, trace_inputs
from onnx_networks import KINDS, N_CLASSES, input_size, make_network, make_skeleton

SHAPE = (3, 4, 4)


class Flat(nn.Module):
    """A linear classifier of 48 numbers; the networks below differ from it in one point each."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Spare(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))


class Tied(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(48, N_CLASSES)
        self.second.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) + self.second(x.flatten(1))


class Noisy(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, training=True))


class Branching(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Masked(Flat):
    """Two inputs, of which the second says what counts of the first."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x * mask[:, None, None, :])


class FiveAxes(Flat):
    """Attention as in timm's Hiera, over windows of windows."""

    fused_attn = True

    def forward(self, x: Tensor) -> Tensor:
        q = x.reshape(len(x), 3, 2, 2, 4)
        if self.fused_attn:
            return super().forward(F.scaled_dot_product_attention(q, q, q))
        return super().forward((q @ q.transpose(-2, -1) / 2).softmax(-1) @ q)


class Scaled(Flat):
    """A scale of one, which an optimiser would remove."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(48)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) * self.get_parameter(self.name))


@pytest.mark.parametrize("kind", KINDS)
def test_every_float_tensor_of_the_state_dict_is_an_initializer_without_data(kind: str) -> None:
    skeleton = make_skeleton(kind)
    found = {
        weight.name: (weight.data_type, tuple(weight.dims), len(weight.raw_data))
        for weight in skeleton.graph.initializer
        if weight.data_location == TensorProto.EXTERNAL
    }
    state = make_network(kind).state_dict()
    assert found == {
        name: (TensorProto.FLOAT, tuple(tensor.shape), 0)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    unread = next(p.value for p in skeleton.metadata_props if p.key == UNREAD)
    assert json.loads(unread) == sorted(state.keys() - found.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_no_norm_is_folded_into_its_neighbours(kind: str) -> None:
    norms = {nn.BatchNorm2d: "BatchNormalization", nn.LayerNorm: "LayerNormalization"}
    expected = Counter(
        op for m in make_network(kind).modules() for cls, op in norms.items() if isinstance(m, cls)
    )
    ops = Counter(node.op_type for node in make_skeleton(kind).graph.node)
    assert {op: ops[op] for op in norms.values()} == {op: expected[op] for op in norms.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_with_a_weight_can_be_found_from_its_nodes(kind: str) -> None:
    layers = {
        name
        for name, module in make_network(kind).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert layers <= {layer_of(node) for node in make_skeleton(kind).graph.node}


def test_a_node_of_no_layer_belongs_to_the_network() -> None:
    skeleton = make_skeleton("vit")
    layers = {node.name: layer_of(node) for node in skeleton.graph.node}
    assert (layers["node_Shape_0"], layers["node_conv2d"]) == ("", "patch_embed.proj")
    assert layer_of(onnx.helper.make_node("Abs", ["a"], ["b"])) == ""


def test_the_graph_does_not_depend_on_the_weights_and_the_model_is_not_modified() -> None:
    model = make_network("vit", seed=3)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    before = copy.deepcopy(model.state_dict())
    skeleton = trace_graph(model, input_size("vit"))
    assert skeleton.SerializeToString() == make_skeleton("vit").SerializeToString()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in model.modules())


def test_a_scale_of_one_stays_in_the_graph() -> None:
    graph = trace_graph(Scaled("scale").eval(), SHAPE).graph
    assert "scale" in {name for node in graph.node for name in node.input}


def test_the_relative_positions_of_a_swin_block_are_read_and_their_index_is_a_constant() -> None:
    graph = make_skeleton("swin").graph
    read = {name for node in graph.node for name in node.input}
    tables = {weight.name for weight in graph.initializer if "bias_table" in weight.name}
    assert tables == {
        f"layers.0.blocks.{block}.attn.relative_position_bias_table" for block in (0, 1)
    }
    assert tables <= read


def test_input_and_output_are_named_and_the_batch_is_free() -> None:
    skeleton = make_skeleton("vit")
    ends = [
        (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*skeleton.graph.input, *skeleton.graph.output)
    ]
    assert ends == [("image", ["batch", 3, 32, 32]), ("logits", ["batch", N_CLASSES])]
    assert [opset.version for opset in skeleton.opset_import] == [20]


def test_the_graph_shows_no_path_of_the_machine_that_built_it() -> None:
    content = make_skeleton("vit").SerializeToString()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_a_parameter_that_nothing_reads_is_listed_and_not_in_the_graph() -> None:
    skeleton = trace_graph(Spare().eval(), SHAPE)
    assert {p.key: p.value for p in skeleton.metadata_props} == {UNREAD: '["spare"]'}


def test_a_tensor_with_two_names_is_refused() -> None:
    with pytest.raises(ExportError, match=r"second.weight and head.weight: must be two tensors"):
        trace_graph(Tied().eval(), SHAPE)


def test_a_parameter_that_hides_behind_the_input_is_refused() -> None:
    with pytest.raises(ExportError, match=r"got none for image \(1 in all\)"):
        trace_graph(Scaled("image").eval(), SHAPE)


def test_a_weight_that_the_optimiser_drops_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop_scale(model: ir.Model) -> None:
        (scale,) = (node for node in model.graph if node.op_type == "Mul")
        scale.outputs[0].replace_all_uses_with(scale.inputs[0])
        model.graph.remove(scale, safe=True)

    monkeypatch.setattr("glora_deploy.export.onnx_model.trace.optimize_ir", drop_scale)
    with pytest.raises(ExportError, match=r"got none for scale \(1 in all\)"):
        trace_graph(Scaled("scale").eval(), SHAPE)


def test_a_parameter_that_takes_the_name_of_the_output_is_refused() -> None:
    with pytest.raises(ExportError, match="the output must be logits, got logits_1"):
        trace_graph(Scaled("logits").eval(), SHAPE)


def test_a_random_operator_is_refused() -> None:
    with pytest.raises(ExportError, match="nodes must be deterministic, got"):
        trace_graph(Noisy().eval(), SHAPE)


def test_attention_that_the_exporter_does_not_know_is_spelled_out_while_it_traces() -> None:
    model = FiveAxes().eval()
    ops = {node.op_type for node in trace_graph(model, SHAPE).graph.node}
    assert "Softmax" in ops
    assert model.fused_attn


def test_a_network_of_two_inputs_has_both_by_name_and_with_open_axes() -> None:
    batch = torch.export.Dim("batch")
    examples = {"x": torch.ones(2, *SHAPE), "mask": torch.ones(2, 4)}
    graph = trace_inputs(Masked().eval(), examples, ({0: batch}, {0: batch})).graph
    found = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert found == {"x": ["batch", *SHAPE], "mask": ["batch", 4]}
    assert graph.output[0].name == "logits"


def test_two_inputs_cannot_share_an_example() -> None:
    one = torch.ones(2, 4, 4, 4)
    with pytest.raises(ValueError, match="x, mask: must be a tensor each, got one for two"):
        trace_inputs(Masked().eval(), {"x": one, "mask": one}, ({}, {}))


def test_a_network_that_cannot_be_traced_is_refused_in_one_line() -> None:
    with pytest.raises(ExportError, match=r"^Branching: torch.onnx.export must trace it, got: .+$"):
        trace_graph(Branching().eval(), SHAPE)


def test_a_model_in_training_is_refused_by_the_name_of_the_module() -> None:
    model = Flat().eval()
    model.head.train()
    with pytest.raises(ValueError, match="head must be in evaluation mode"):
        trace_graph(model, SHAPE)


def test_a_model_in_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head.weight: dtype must be torch.float32, got torch.f"):
        trace_graph(Flat().eval().double(), SHAPE)
