"""The default int8 file on CPUs that add two products in 16 bits, whatever CPU runs the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from glora_deploy.errors import ExportError
from glora_deploy.export.int8 import quantize as quantize_module
from glora_deploy.export.int8.quantize import QuantizeConfig, int8_weights, quantize
from glora_deploy.export.int8.report import QuantizeReport
from glora_deploy.export.int8.saturation import SUM_MAX, largest_sum
from glora_deploy.export.onnx_model.ort_session import (
    OnnxSession,
    integer_products,
    multiplies_exactly,
)
from glora_deploy.store.manifest import Manifest
from int8_tasks import make_folder, make_manifest, make_preprocessed, make_task

U8 = NDArray[np.uint8]
S8 = NDArray[np.int8]


def saturating_products(activations: U8, weights: S8) -> NDArray[np.int32]:
    """What x86 CPUs without VNNI compute: ``vpmaddubsw``, ``vpmaddwd`` with ones, ``vpaddd``.

    Neighbouring products are added two and two in 16 bits, where a sum beyond them becomes the
    nearest number they hold; the rest is exact.
    """
    d_in = activations.shape[1]
    products = activations[:, :, None].astype(np.int32) * weights[None]
    if d_in % 2:
        products = np.concatenate([products, np.zeros_like(products[:, :1])], axis=1)
    pairs = products.reshape(len(activations), -1, 2, weights.shape[1]).sum(axis=2)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1, dtype=np.int32)


def exact_products(activations: U8, weights: S8) -> NDArray[np.int32]:
    return activations.astype(np.int32) @ weights.astype(np.int32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path)


def quantised(folder: Path, manifest: Manifest, config: QuantizeConfig) -> onnx.ModelProto:
    quantize(folder, manifest, make_task(folder, manifest), config)
    return onnx.load(folder / "model.int8.onnx")


def products_of(
    model: onnx.ModelProto, images: NDArray[np.float32]
) -> Iterator[tuple[list[U8], S8]]:
    """For each 8-bit layer its activations on the images and those that push furthest."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    weights = int8_weights(model)
    written = {node.output[0]: node for node in model.graph.node}
    readers = [
        node for node in model.graph.node if len(node.input) > 1 and node.input[1] in weights
    ]
    eight = {node.name: written[node.input[0]].input[0] for node in readers}
    for name in sorted(set(eight.values())):
        kind = onnx.TensorProto.UINT8
        probed.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    found = OnnxSession(probed, threads=1, folder=Path()).all_outputs(images)
    rng = np.random.default_rng(0)
    for node in readers:
        array, axis = weights[node.input[1]]
        matrix = array if axis else array.reshape(len(array), -1).T  # (d_in, d_out)
        d_in = matrix.shape[0]
        real = np.asarray(found[eight[node.name]], np.uint8).reshape(-1, d_in)[::7]
        up = np.where(matrix.T > 0, 255, 0).astype(np.uint8)[:8]  # a row for each of 8 channels
        full = np.full((1, d_in), 255, np.uint8)
        drawn = rng.integers(0, 256, (8, d_in), np.uint8)
        yield [real, up, 255 - up, full, drawn], matrix


def test_the_default_file_cannot_saturate_on_any_cpu(folder: Path, manifest: Manifest) -> None:
    model = quantised(folder, manifest, QuantizeConfig(max_loss=1, threads=1))
    # The bound follows from the weights alone: no activations can pass it.
    assert largest_sum(int8_weights(model).values()) == 255 * (64 + 64) <= SUM_MAX
    images = make_preprocessed(folder, manifest)
    layers = list(products_of(model, images))
    assert len(layers) == 8
    for activations, weights in layers:
        for rows in activations:
            np.testing.assert_array_equal(
                saturating_products(rows, weights), exact_products(rows, weights)
            )


def test_a_file_of_all_8_bits_could(folder: Path, manifest: Manifest) -> None:
    model = quantised(folder, manifest, QuantizeConfig(max_loss=1, threads=1, target="vnni"))
    assert largest_sum(int8_weights(model).values()) > SUM_MAX
    wrong = []
    for (real, *furthest), weights in products_of(model, make_preprocessed(folder, manifest)):
        wrong.append((saturating_products(real, weights) != exact_products(real, weights)).any())
        for rows in furthest[:2]:
            assert (saturating_products(rows, weights) != exact_products(rows, weights)).any()
    assert any(wrong), "the images at hand must show it too"


@pytest.mark.parametrize("n", [1, 3, 8])
def test_this_cpu_multiplies_exactly_or_as_the_model_of_saturation_says(n: int) -> None:
    rng = np.random.default_rng(0)
    activations = rng.integers(128, 256, (n, 96), np.uint8)
    weights = rng.integers(-127, 128, (96, 48), np.int8)
    exact, saturated = (f(activations, weights) for f in (exact_products, saturating_products))
    assert (exact != saturated).mean() > 0.5
    found = integer_products(activations, weights)
    np.testing.assert_array_equal(found, exact if multiplies_exactly() else saturated)
    seven = np.clip(weights, -64, 64)
    np.testing.assert_array_equal(
        integer_products(activations, seven), exact_products(activations, seven)
    )


def test_the_largest_sum_is_of_two_weights_of_one_channel() -> None:
    weights = np.array([[100, -5, 3], [1, 90, -2], [-128, 7, 4]], np.int8)
    assert largest_sum([(weights, 1)]) == 255 * (128 + 100)
    assert largest_sum([(weights, 0)]) == 255 * (128 + 7)
    kernel = np.array([[[[1, 2], [3, -60]]], [[[9, 0], [0, 8]]]], np.int8)
    assert largest_sum([(kernel, 0)]) == 255 * 63
    assert largest_sum([(weights, 0), (kernel, 0)]) == 255 * 135
    assert largest_sum([(np.full((1, 3), -7, np.int8), 1)]) == 255 * 7
    assert largest_sum([]) == 0


def test_weights_that_could_saturate_are_refused_in_a_file_for_any_cpu(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the quantiser ever take another range for 7 bits."""
    write = quantize_module.write_int8

    def all_bits(*arguments: object, seven_bit: bool) -> None:
        assert seven_bit
        write(*arguments, seven_bit=False)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize_module, "write_int8", all_bits)
    message = r"two products must add up to at most 32767 for any CPU, got weights that reach 64770"
    with pytest.raises(ExportError, match=message):
        quantize(folder, manifest, None, QuantizeConfig(max_loss=1, threads=1))
    assert not (folder / "model.int8.onnx").exists()


def test_the_report_says_whether_its_figures_hold_for_an_exact_cpu(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "multiplies_exactly", lambda: False)
    report = quantize(folder, manifest, None, QuantizeConfig(max_loss=1, threads=1))
    assert (report.exact, report.holds_here) == (False, True)
    report = quantize(folder, manifest, None, QuantizeConfig(max_loss=1, threads=1, target="vnni"))
    assert (report.exact, report.holds_here) == (False, False)
    assert f"; {report.machine} saturates 8-bit products: leave out --int8-target" in report.problem
    monkeypatch.setattr(quantize_module, "multiplies_exactly", lambda: True)
    report = quantize(folder, manifest, None, QuantizeConfig(max_loss=1, threads=1, target="arm"))
    assert (report.exact, report.holds_here, report.target) == (True, True, "arm")
    assert "saturates" not in report.problem
    assert QuantizeReport.read(folder) == report
