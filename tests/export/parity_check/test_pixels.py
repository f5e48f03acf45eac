"""The parity check of a model that takes decoded pixels: what it measures, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import PIL
import pytest
from onnx import ModelProto, numpy_helper

from glora_deploy.data.image_set import ImageSet
from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import MissingDependencyError
from glora_deploy.export.onnx_model.preprocessing_graph import preprocessing_graph
from glora_deploy.export.parity_check import pixels as pixels_module
from glora_deploy.export.parity_check.inputs import ParityInputs
from glora_deploy.export.parity_check.pixels import AWKWARD, check_pixels
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.parity import DEFAULT_LIMITS, PixelDifference, Step
from glora_deploy.precision import Precision
from stored_tasks import make_stored_task
from tasks import make_images

NOTHING = np.zeros((0, 3, 32, 32), np.float32)
SAME = PixelDifference(max_levels=0, share=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preprocessing]:
    """An export with ``model.pixels.onnx``, and its preprocessing."""
    store, artifact = make_stored_task(tmp_path_factory.mktemp("pixels"))
    config = ExportConfig(formats=("onnx", "pixels"), n_images=1)
    done = export(store, artifact, config)
    return done.folder, Preprocessing(**artifact.manifest.preprocessing.model_dump())


@pytest.fixture
def own(made: tuple[Path, Preprocessing], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made[0], tmp_path / "export"))


def check(
    folder: Path, p: Preprocessing, photos: ImageSet | None = None, precision: Precision = "fp32"
) -> list[Step]:
    inputs = ParityInputs(NOTHING, NOTHING, NOTHING, "6 photos", photos)
    return check_pixels(folder, p, inputs, precision, DEFAULT_LIMITS[precision])


def change(folder: Path, edit: Callable[[ModelProto], None]) -> None:
    path = folder / "model.pixels.onnx"
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())


def scale_constant(name: str, factor: float) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == f"preprocess_{name}")
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            numpy_helper.from_array(np.asarray(value * factor, value.dtype), tensor.name)
        )

    return edit


def test_photos_and_awkward_sizes_see_the_same_pixels_and_answer_alike(
    made: tuple[Path, Preprocessing],
) -> None:
    photos, awkward = check(*made, make_images(6, seed=3, size=45))
    assert (photos.stage, photos.inputs, photos.n_images) == ("pixels-fp32", "6 photos", 6)
    assert (awkward.stage, awkward.inputs, awkward.n_images) == ("pixels-fp32", AWKWARD, 9)
    for step in (photos, awkward):
        assert (step.outcome, step.pixels) == ("pass", SAME)
        (against,) = step.comparisons
        assert against.against == "softmax of onnx-fp32"
        assert against.max_abs < 1e-6
        assert against.error == against.max_abs
        assert against.agreement == 1
        assert step.provider == "CPUExecutionProvider"


def test_without_photos_there_is_still_noise(made: tuple[Path, Preprocessing]) -> None:
    (step,) = check(*made)
    assert (step.inputs, step.outcome, step.pixels) == (AWKWARD, "pass", SAME)


def test_another_resize_fails_and_says_how_far_off_it_is(
    made: tuple[Path, Preprocessing], own: Path
) -> None:
    # Of the bicubic filter: the -0.75 that ONNX's own Resize takes for Pillow's -0.5.
    change(own, scale_constant("cubic_a", 1.5))
    step = check(own, made[1], make_images(6, seed=3, size=45))[0]
    assert step.outcome == "fail"
    assert step.pixels is not None
    assert step.pixels.max_levels > 1
    assert step.reason == (
        f"{step.pixels.share:.2%} of the pixels differ from Pillow's, by up to "
        f"{step.pixels.max_levels:g} of 255 levels, limit 1% and 1"
    )


def test_rounding_down_is_a_level_at_most_and_fails_by_its_share(
    made: tuple[Path, Preprocessing], own: Path
) -> None:
    def round_down(model: ModelProto) -> None:
        both_orders = [a.g.node for node in model.graph.node for a in node.attribute]
        for nodes in (model.graph.node, *both_orders):  # before Pillow 13 there is one
            for node in nodes:
                if node.name.endswith("_level_middle"):
                    node.input[1] = "preprocess_zero"

    change(own, round_down)
    step = check(own, made[1], make_images(6, seed=3, size=45))[0]
    assert step.outcome == "fail"
    assert step.pixels is not None
    assert step.pixels.share > 0.01


def test_another_normalisation_leaves_the_pixels_and_changes_the_answer(
    made: tuple[Path, Preprocessing], own: Path
) -> None:
    change(own, scale_constant("std", 2))
    for step in check(own, made[1], make_images(6, seed=3, size=45)):
        assert (step.outcome, step.pixels) == ("fail", SAME)
        assert step.reason.startswith("probabilities differ from softmax of onnx-fp32 by ")


def test_pixels_of_another_pillow_are_named(made: tuple[Path, Preprocessing], own: Path) -> None:
    def of_old_pillow(model: ModelProto) -> None:
        network = len(preprocessing_graph(made[1], tall_first=True).node)
        old = preprocessing_graph(made[1], tall_first=False)
        rest = list(model.graph.node[network:])
        del model.graph.node[:]
        model.graph.node.extend([*old.node, *rest])
        for prop in model.metadata_props:
            prop.value = "12.3.0" if prop.key == "pillow" else prop.value

    if int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this Pillow resizes along the rows first, as older ones do")
    change(own, of_old_pillow)
    (step,) = check(own, made[1])
    assert step.outcome == "fail"
    assert step.reason.endswith(f"; it has those of Pillow 12.3.0, here is {PIL.__version__}")


def test_in_bf16_the_pixels_alone_are_compared(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    config = ExportConfig(formats=("onnx", "pixels"), n_images=1, precision="bf16")
    step = export(store, artifact, config).report.steps[-1]
    assert (step.stage, step.outcome, step.pixels) == ("pixels-bf16", "skipped", SAME)
    assert step.reason == "ONNX Runtime has no bf16 arithmetic on the CPU"


def test_without_onnx_runtime_it_is_skipped(
    made: tuple[Path, Preprocessing], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingDependencyError("onnxruntime", "cpu", "running an ONNX model")

    monkeypatch.setattr(pixels_module, "OnnxSession", missing)
    (step,) = check(*made)
    assert (step.outcome, step.n_images, step.pixels) == ("skipped", 0, None)
    assert "onnxruntime" in step.reason
