"""Decoded pixels in and probabilities out of a whole network, beside the two steps of before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from glora_deploy.data.preprocess import Preprocessing, preprocess_batch, to_pixels
from glora_deploy.errors import ExportError
from glora_deploy.export.onnx_model.half_precision import to_precision
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.preprocessing_graph import LEVELS, PIXELS
from glora_deploy.export.onnx_model.with_preprocessing import (
    PROBABILITIES,
    only_preprocessing,
    with_preprocessing,
)
from glora_deploy.export.onnx_model.write import write_onnx
from onnx_networks import N_CLASSES, SIZE, make_network, make_skeleton, write_weights

P = Preprocessing(
    size=(SIZE, SIZE),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    interpolation="bicubic",
    crop_pct=0.9,
    crop_mode="center",
)
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 50, 71, 3), np.uint8)


def logits_of(folder: Path) -> np.ndarray:
    images = preprocess_batch(map(Image.fromarray, PICTURES), P)
    return OnnxSession(folder / "model.onnx").logits(images).astype(np.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_probabilities_of_decoded_pixels_are_those_of_the_network(
    tmp_path: Path, precision: str, single_file: bool
) -> None:
    dtype = torch.float16 if precision == "fp16" else torch.float32
    write_weights(make_network("vit"), tmp_path, dtype)
    skeleton = make_skeleton("vit")
    if precision == "fp16":
        skeleton = to_precision(skeleton, "fp16")
    before = skeleton.SerializeToString()
    write_onnx(tmp_path, skeleton, {})
    whole = with_preprocessing(skeleton, P)
    assert skeleton.SerializeToString() == before
    path = write_onnx(tmp_path, whole, {}, single_file=single_file, name="model.pixels.onnx")
    assert path == tmp_path / "model.pixels.onnx"
    expected = softmax(logits_of(tmp_path))
    if single_file:
        (tmp_path / "model.safetensors").unlink()
    found = OnnxSession(path).run(PROBABILITIES, {PIXELS: PICTURES})
    assert found.dtype == np.float32
    # The same images into the same network: the softmax alone is rounded.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(expected) > 0.1


def test_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    write_weights(make_network("vit"), tmp_path)
    path = write_onnx(tmp_path, with_preprocessing(make_skeleton("vit"), P), {"task": "pets"})
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    (pixels,), (probabilities,) = model.graph.input, model.graph.output
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (pixels, probabilities)
    ]
    assert (pixels.name, probabilities.name) == ("pixels", "probabilities")
    assert shapes == [["batch", "height", "width", 3], ["batch", N_CLASSES]]
    kinds = [value.type.tensor_type.elem_type for value in (pixels, probabilities)]
    assert kinds == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    assert {prop.key: prop.value for prop in model.metadata_props} == {"task": "pets"}


def test_the_preprocessing_comes_apart_again(tmp_path: Path) -> None:
    write_weights(make_network("vit"), tmp_path)
    path = write_onnx(tmp_path, with_preprocessing(make_skeleton("vit"), P), {})
    part = only_preprocessing(onnx.load(path, load_external_data=False))
    onnx.checker.check_model(part)
    assert not any(tensor.external_data for tensor in part.graph.initializer)
    levels = OnnxSession(part).run(LEVELS, {PIXELS: PICTURES})
    expected = [to_pixels(Image.fromarray(picture), P) for picture in PICTURES]
    np.testing.assert_array_equal(np.moveaxis(levels, 1, -1), expected)


def test_a_model_without_preprocessing_has_no_such_part() -> None:
    with pytest.raises(ExportError, match="must have a tensor preprocess_levels, it has none"):
        only_preprocessing(make_skeleton("vit"))


@pytest.mark.parametrize("taken", ["pixels", "probabilities", "preprocess_x_scale"])
def test_a_network_with_a_name_of_the_preprocessing_is_refused(taken: str) -> None:
    skeleton = make_skeleton("vit")
    node = skeleton.graph.node[0]
    for other in skeleton.graph.node:
        other.input[:] = [taken if name == node.output[0] else name for name in other.input]
    node.output[0] = taken
    with pytest.raises(ExportError, match=f"no tensor may be named {taken} beside"):
        with_preprocessing(skeleton, P)
