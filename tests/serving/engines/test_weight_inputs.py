"""A graph whose weights are inputs computes what the network computes, whatever the head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from glora_deploy.serving.engines.network import ALIGNMENT, Buffer, Slot, SlotLayout
from glora_deploy.serving.engines.onnx_runtime import OnnxNetwork
from glora_deploy.serving.engines.weight_inputs import point_at_backbone, with_weight_inputs
from glora_deploy.serving.errors import LoadError
from glora_deploy.store.mapped_safetensors import map_tensors
from onnx_networks import make_images, make_network, make_skeleton, torch_logits, write_weights

ATOL = 2e-5  # float32, logits near 1, two libraries

HEADS = {"vit": "head", "swin": "head.fc", "convnext": "head.fc"}


def head_names(kind: str) -> tuple[str, ...]:
    return (f"{HEADS[kind]}.weight", f"{HEADS[kind]}.bias")


def adapted_names(model: torch.nn.Module, head: tuple[str, ...]) -> list[str]:
    """Weights and biases of two layers of three: linear, convolutional or norms."""
    layers = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    return [
        f"{layer}.{part}"
        for layer in (name for index, name in enumerate(layers) if index % 3)
        for part in ("weight", "bias")
        if f"{layer}.{part}" in model.state_dict() and f"{layer}.{part}" not in head
    ]


@pytest.mark.parametrize("kind", HEADS)
def test_it_answers_as_the_network_whose_weights_it_is_fed(kind: str, tmp_path: Path) -> None:
    frozen, task = make_network(kind, seed=0), make_network(kind, seed=3)
    head = head_names(kind)
    adapted = adapted_names(frozen, head)
    state = task.state_dict()
    with torch.no_grad():
        for name, tensor in frozen.state_dict().items():
            if name not in (*adapted, *head):
                state[name].copy_(tensor)
    weights = write_weights(frozen, tmp_path / "backbone")
    network = OnnxNetwork(
        make_skeleton(kind), weights, map_tensors(weights), adapted=adapted, head=head, threads=1
    )
    assert network.layout.slots.keys() == set(adapted)
    assert any(slot.transposed for slot in network.layout.slots.values()) == (kind != "convnext")
    views = network.layout.views(Buffer(network.layout.size_bytes))
    for name, view in views.items():
        value = state[name].numpy()
        view[...] = value.T if network.layout.slots[name].transposed else value
    bound = network.bind(views, {name: state[name].numpy() for name in head})
    images = make_images(kind)
    expected = torch_logits(task, images)
    np.testing.assert_allclose(network.run(bound, images), expected, atol=ATOL)
    wrong = torch_logits(frozen, images)
    assert not np.allclose(expected, wrong, atol=100 * ATOL)


@pytest.mark.parametrize("kind", HEADS)
def test_weights_laid_out_as_constants_answer_alike(kind: str, tmp_path: Path) -> None:
    frozen, task = make_network(kind, seed=0), make_network(kind, seed=3)
    head, state = head_names(kind), task.state_dict()
    weights = write_weights(frozen, tmp_path)
    skeleton = make_skeleton(kind)
    adapted = [name for name in state if name not in head]
    network = OnnxNetwork(
        skeleton, weights, map_tensors(weights), adapted=adapted, head=head, threads=1
    )
    read = {n for node in skeleton.graph.node if node.op_type == "Conv" for n in node.input[1:]}
    assert read & network.layout.slots.keys()  # optimisers read the numbers of these
    views = network.layout.views(Buffer(network.layout.size_bytes))
    for name, view in views.items():
        value = state[name].numpy()
        view[...] = value.T if network.layout.slots[name].transposed else value
    fixed = network.fix(views, {name: state[name].numpy() for name in head})
    assert fixed is not None
    images = make_images(kind)
    np.testing.assert_allclose(network.run(fixed, images), torch_logits(task, images), atol=ATOL)


def test_the_head_may_have_any_number_of_rows(tmp_path: Path) -> None:
    model = make_network("vit")
    head = head_names("vit")
    weights = write_weights(model, tmp_path)
    network = OnnxNetwork(
        make_skeleton("vit"), weights, map_tensors(weights), adapted=(), head=head, threads=1
    )
    images = make_images("vit")
    expected = torch_logits(model, images)
    state = {name: model.state_dict()[name].numpy() for name in head}
    for n_rows in (1, 4, 13):
        rows = np.arange(n_rows) % expected.shape[1]
        bound = network.bind({}, {name: np.ascontiguousarray(v[rows]) for name, v in state.items()})
        found = network.run(bound, images)
        np.testing.assert_allclose(found, expected[:, rows], atol=ATOL)


def test_what_no_delta_changes_lies_in_the_backbones_file(tmp_path: Path) -> None:
    weights = write_weights(make_network("vit"), tmp_path)
    skeleton = make_skeleton("vit")
    before = skeleton.SerializeToString()
    head = head_names("vit")
    model, slots = with_weight_inputs(skeleton, ["blocks.0.attn.qkv.weight"], head)
    point_at_backbone(model, weights, map_tensors(weights))
    assert skeleton.SerializeToString() == before
    assert slots == [Slot(name="blocks.0.attn.qkv.weight", shape=(48, 144), transposed=True)]
    external = {w.name for w in model.graph.initializer if w.data_location == TensorProto.EXTERNAL}
    assert external == map_tensors(weights).keys() - {*head, "blocks.0.attn.qkv.weight"}
    assert len(model.SerializeToString()) < len(before) + 10_000


def test_a_graph_that_is_not_of_this_backbone_is_refused(tmp_path: Path) -> None:
    skeleton = make_skeleton("vit")
    with pytest.raises(LoadError, match=r"^the graph must read fc.weight, got \d+ other tensors$"):
        with_weight_inputs(skeleton, (), ("fc.weight",))
    other = write_weights(make_network("swin"), tmp_path / "swin")
    model, _ = with_weight_inputs(skeleton, (), head_names("vit"))
    with pytest.raises(
        LoadError, match=r"^the backbone must hold cls_token, which its graph reads"
    ):
        point_at_backbone(model, other, map_tensors(other))
    wide = make_network("vit")
    wide.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 7))
    weights = write_weights(wide, tmp_path / "wide")
    with pytest.raises(LoadError, match=r"^cls_token must have shape \(1, 1, 48\) as in the graph"):
        point_at_backbone(model, weights, map_tensors(weights))
    skeleton.graph.output[0].name = "features"
    with pytest.raises(LoadError, match=r"^the graph must map image to logits, got"):
        with_weight_inputs(skeleton, (), ())


def test_a_weight_that_is_also_read_upright_stays_upright() -> None:
    skeleton = make_skeleton("vit")
    name = "blocks.0.attn.proj.weight"
    skeleton.graph.node.append(onnx.helper.make_node("Identity", [name], ["again"]))
    model, slots = with_weight_inputs(skeleton, [name], head_names("vit"))
    assert slots == [Slot(name=name, shape=(48, 48))]
    assert sum(name in node.input for node in model.graph.node) == 2


def test_slots_lie_apart_and_on_cache_lines() -> None:
    slots = [Slot(name="a", shape=(3, 5)), Slot(name="b", shape=(7,)), Slot(name="c", shape=(2, 2))]
    layout = SlotLayout(slots, np.dtype(np.float32))
    views = layout.views(Buffer(layout.size_bytes))
    for index, view in enumerate(views.values()):
        assert view.ctypes.data % ALIGNMENT == 0
        view[...] = index
    assert [view.shape for view in views.values()] == [(3, 5), (7,), (2, 2)]
    assert [int(view.sum()) for view in views.values()] == [0, 7, 8]
    assert layout.size_bytes == 3 * ALIGNMENT
