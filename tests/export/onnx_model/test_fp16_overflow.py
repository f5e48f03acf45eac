from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn

from glora_deploy.errors import NonFiniteError
from glora_deploy.export.onnx_model.fp16_overflow import FP16_MAX, find_overflow
from glora_deploy.export.onnx_model.half_precision import to_precision
from glora_deploy.export.onnx_model.write import write_onnx
from onnx_networks import make_images, make_network, make_skeleton, torch_logits, write_weights

LAYER = "blocks.1.mlp.fc1"
RTOL = 0.02  # of the spread of the logits: half precision through two blocks


def make_hot_network() -> nn.Module:
    """A ViT whose second MLP is large inside, with weights that fp16 holds without loss."""
    model = make_network("vit")
    state = model.state_dict()
    state[f"{LAYER}.weight"] *= 2e4
    state["blocks.1.mlp.fc2.weight"] *= 1e-2
    return model


def export(model: nn.Module, folder: Path) -> Path:
    write_weights(model, folder)
    return write_onnx(folder, make_skeleton("vit"), {})


def half_logits(model: nn.Module, keep_fp32: list[str], folder: Path) -> NDArray[np.float32]:
    """What the fp16 graph computes when every value really is fp16, as on a GPU."""
    write_weights(model, folder, torch.float16)
    path = write_onnx(folder, to_precision(make_skeleton("vit"), "fp16", keep_fp32), {})
    with np.errstate(all="ignore"):
        (logits,) = ReferenceEvaluator(onnx.load(path)).run(None, {"image": make_images("vit")})
    return np.asarray(logits)


def test_an_ordinary_network_has_no_overflow(tmp_path: Path) -> None:
    assert find_overflow(export(make_network("vit"), tmp_path), make_images("vit")) == []


def test_the_layer_that_leaves_fp16_is_named_with_its_operators(tmp_path: Path) -> None:
    found = find_overflow(export(make_hot_network(), tmp_path), make_images("vit"))
    assert [(o.layer, o.op) for o in found] == [
        (LAYER, "MatMul"),
        (LAYER, "Add"),
        ("blocks.1.mlp.act", "Gelu"),
        ("blocks.1.mlp.fc2", "MatMul"),
    ]
    assert min(o.max_abs for o in found) > FP16_MAX


def test_the_largest_magnitude_is_that_of_the_layers_output_over_all_batches(
    tmp_path: Path,
) -> None:
    model, images = make_hot_network(), make_images("vit", 19)
    seen: list[float] = []
    layer = model.get_submodule(LAYER)
    layer.register_forward_hook(lambda _, __, output: seen.append(output.abs().max().item()))
    torch_logits(model, images)
    found = find_overflow(export(model, tmp_path), images)
    assert found[1].max_abs == pytest.approx(seen[0], rel=1e-5)


def test_keeping_the_named_nodes_in_fp32_makes_a_broken_fp16_model_whole(tmp_path: Path) -> None:
    model = make_hot_network()
    expected = torch_logits(model, make_images("vit"))
    assert not np.isfinite(half_logits(model, [], tmp_path / "broken")).all()

    found = find_overflow(export(model, tmp_path / "fp32"), make_images("vit"))
    whole = half_logits(model, [o.node for o in found], tmp_path / "whole")
    assert np.abs(whole - expected).max() < RTOL * expected.std()


def test_the_limit_leaves_room_for_images_not_seen(tmp_path: Path) -> None:
    path = export(make_hot_network(), tmp_path)
    (largest,) = {o.max_abs for o in find_overflow(path, make_images("vit")) if o.op == "Gelu"}
    just_below = find_overflow(path, make_images("vit"), limit=largest * 0.999)
    assert "Gelu" in {o.op for o in just_below}
    assert find_overflow(path, make_images("vit"), limit=largest * 1.001) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_is_not_finite_in_fp32_is_refused_by_layer(
    tmp_path: Path, value: float
) -> None:
    model = make_network("vit")
    model.state_dict()["blocks.1.norm1.bias"][3] = value  # one of 48: a maximum may miss it
    path = export(model, tmp_path)
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.norm1: LayerNormalization must be fini"):
        find_overflow(path, make_images("vit"))
