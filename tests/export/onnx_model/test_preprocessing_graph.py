"""The preprocessing in a graph against Pillow: the same pixels, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnx
import PIL
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from glora_deploy.data.preprocess import (
    CropMode,
    Interpolation,
    Preprocessing,
    preprocess_batch,
    to_pixels,
)
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.preprocessing_graph import (
    IMAGE,
    LEVELS,
    PIXELS,
    preprocessing_graph,
)

FILTERS = get_args(Interpolation)
CROP_MODES: tuple[CropMode, ...] = get_args(CropMode)
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13
OF_NETWORKS = [((24, 24), 0.9), ((24, 20), 0.875), ((33, 33), 1.0), ((20, 20), 1.15)]
"""Size and crop_pct: the usual one, one that is no square, no crop, and one with a border."""
AWKWARD = [(1, 1), (1, 7), (9, 1), (2, 300), (400, 3), (24, 24), (26, 26), (24, 20), (90, 21)]

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], NDArray[Any]]]


def make(interpolation: str, crop_mode: str, size: tuple[int, int], crop_pct: float) -> Any:
    return Preprocessing(
        size=size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation=interpolation,  # type: ignore[arg-type]
        crop_pct=crop_pct,
        crop_mode=crop_mode,  # type: ignore[arg-type]
    )


def graph_of(p: Preprocessing, *, tall_first: bool = PILLOW_13) -> Run:
    """The graph, giving what it gives and its pixels before they are normalised."""
    graph = preprocessing_graph(p, tall_first=tall_first)
    levels = helper.make_tensor_value_info(LEVELS, TensorProto.FLOAT, ["batch", 3, *p.size])
    graph.output.append(levels)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = OnnxSession(model, threads=1)

    def run(pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        image, cropped = (session.run(name, {PIXELS: pixels}) for name in (IMAGE, LEVELS))
        return image, np.moveaxis(cropped, 1, -1)

    return run


def noise(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    """Half of the images are black and white: sums then lie far outside 0 to 255."""
    pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
    return np.where(pixels > 127, np.uint8(255), np.uint8(0)) if rng.random() < 0.5 else pixels


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", FILTERS)
def test_pixels_of_any_size_are_pillows_to_the_bit(interpolation: str, crop_mode: str) -> None:
    rng = np.random.default_rng([FILTERS.index(interpolation), len(crop_mode)])
    for size, crop_pct in OF_NETWORKS:
        p = make(interpolation, crop_mode, size, crop_pct)
        run = graph_of(p)
        drawn = [*rng.integers(1, 130, (8, 2)), *rng.integers(1, 500, (2, 2))]
        for height, width in [*AWKWARD, *drawn]:
            pixels = noise(rng, 1, height, width)
            picture = Image.fromarray(pixels[0])
            image, levels = run(pixels)
            where = f"{height} x {width} to {size}, {crop_pct}"
            np.testing.assert_array_equal(levels[0], to_pixels(picture, p), where)
            np.testing.assert_array_equal(image, preprocess_batch([picture], p), where)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_photographs_at_the_size_of_a_real_network(interpolation: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="its photographs are not installed")
    photos = datasets.load_sample_images().images
    p = make(interpolation, "center", (224, 224), 0.9)
    run = graph_of(p)
    for photo in photos:
        for pixels in (photo, photo[:, :201], photo[100:131, 50:90]):
            (levels,) = run(np.ascontiguousarray(pixels)[None])[1]
            np.testing.assert_array_equal(levels, to_pixels(Image.fromarray(pixels), p))


def test_a_batch_is_as_its_images_are_alone() -> None:
    p = make("bicubic", "center", (24, 24), 0.9)
    run = graph_of(p)
    pixels = noise(np.random.default_rng(0), 5, 61, 40)
    image, _ = run(pixels)
    assert image.shape == (5, 3, 24, 24)
    for i in range(5):
        np.testing.assert_array_equal(image[i : i + 1], run(pixels[i : i + 1])[0])


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_before_pillow_13_every_image_is_resized_along_its_rows_first(crop_mode: str) -> None:
    p = make("lanczos", crop_mode, (30, 30), 1.0)
    pixels = noise(np.random.default_rng(2), 1, 300, 40)
    height, width = {"center": (225, 30), "squash": (30, 30), "border": (30, 4)}[crop_mode]
    picture = Image.fromarray(pixels[0])
    lanczos = Image.Resampling.LANCZOS
    rows_first = picture.resize((width, 300), lanczos).resize((width, height), lanczos)
    columns_first = picture.resize((40, height), lanczos).resize((width, height), lanczos)
    assert np.any(np.asarray(rows_first) != np.asarray(columns_first))
    # Already of the resized size, so that only crop and border are left to do.
    for tall_first, resized in ((False, rows_first), (True, columns_first)):
        (levels,) = graph_of(p, tall_first=tall_first)(pixels)[1]
        np.testing.assert_array_equal(levels, to_pixels(resized, p))


def test_every_name_but_the_two_ends_says_where_it_belongs() -> None:
    graph = preprocessing_graph(make("hamming", "border", (24, 20), 0.9), tall_first=True)
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names |= {tensor.name for tensor in graph.initializer}
    assert {name for name in names if not name.startswith("preprocess_")} == {PIXELS, IMAGE}
