from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from glora_deploy.errors import MissingDependencyError, NonFiniteError
from glora_deploy.export.parity_check.batch_sizes import Logits
from glora_deploy.export.parity_check.inputs import ParityInputs
from glora_deploy.export.parity_check.run import check_parity
from glora_deploy.export.parity_check.stages import SkipStage, Stage
from glora_deploy.parity import DEFAULT_LIMITS
from glora_deploy.store.manifest import Manifest
from stored_tasks import make_stored_task


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    _, artifact = make_stored_task(tmp_path_factory.mktemp("store"))
    return artifact.manifest


def make_inputs() -> ParityInputs:
    rng = np.random.default_rng(0)
    ordinary, flat, wild = (rng.standard_normal((n, 3, 2, 2), np.float32) for n in (4, 2, 1))
    return ParityInputs(ordinary, flat, wild, "noise")


def scaled(factor: float) -> Callable[[], Logits]:
    return lambda: lambda images: factor * images.reshape(len(images), -1).astype(np.float64)


def no_gpu() -> Logits:
    raise SkipStage("no GPU")


def test_steps_stand_in_the_order_of_the_stages_whichever_ran_first(manifest: Manifest) -> None:
    seen: list[str] = []
    stages = [
        Stage("a", "fp32", scaled(1)),
        Stage("b", "fp32", no_gpu, torch=False),
        Stage("c", "fp32", scaled(1 + 1e-5), torch=False),
        Stage("d", "fp32", scaled(2)),
    ]
    report = check_parity(manifest, make_inputs(), "fp32", scaled(1), stages, on_step=seen.append)
    assert seen == ["b", "c", "a", "d", "merged-fp64"]
    assert [(step.stage, step.outcome) for step in report.steps] == [
        *[("a", "pass")] * 3,
        ("b", "skipped"),
        *[("c", "pass")] * 3,
        *[("d", "fail")] * 3,
    ]
    against = {step.stage: [c.against for c in step.comparisons] for step in report.steps}
    assert against == {
        "a": ["merged-fp64"],
        "b": [],
        "c": ["merged-fp64", "a"],
        "d": ["merged-fp64", "c"],
    }
    assert [step.n_images for step in report.steps[:3]] == [4, 2, 1]


def test_far_inputs_are_judged_by_the_size_of_their_own_logits(manifest: Manifest) -> None:
    inputs = make_inputs()
    inputs = replace(inputs, wild=1e4 * inputs.wild, flat=1e-4 * inputs.flat)
    within = DEFAULT_LIMITS["fp32"].max_error / 10
    report = check_parity(
        manifest, inputs, "fp32", scaled(1), [Stage("a", "fp32", scaled(1 + within))]
    )
    assert report.passed
    ordinary, flat, wild = (step.comparisons[0] for step in report.steps)
    assert wild.max_abs > 100 * ordinary.max_abs
    assert wild.error < 10 * ordinary.error
    # Small logits are not blown up: an error there is no more than it is beside ordinary ones.
    assert flat.error < 1e-3 * ordinary.error


def test_a_stage_whose_library_is_missing_is_skipped_with_the_reason(manifest: Manifest) -> None:
    def load() -> Logits:
        raise MissingDependencyError("onnxruntime", "cpu", "running an ONNX model")

    stages = [Stage("onnx", "fp32", load, torch=False), Stage("a", "fp32", scaled(1))]
    report = check_parity(manifest, make_inputs(), "fp32", scaled(1), stages)
    assert report.steps[0].outcome == "skipped"
    assert "onnxruntime" in report.steps[0].reason
    assert report.passed


def test_a_float64_network_that_is_not_finite_is_an_error_and_no_verdict(
    manifest: Manifest,
) -> None:
    stages = [Stage("a", "fp32", scaled(1))]
    with pytest.raises(NonFiniteError, match="pets: the float64 logits of noise must be finite"):
        check_parity(manifest, make_inputs(), "fp32", scaled(np.nan), stages)
