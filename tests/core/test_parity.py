from __future__ import annotations

import numpy as np
import pytest

from glora_deploy.errors import ArtifactError, ParityError
from glora_deploy.parity import DEFAULT_LIMITS, Limits, Report, Step, compare, judge

LIMITS = Limits(max_error=0.1, min_cosine=0.99, min_agreement=0.75, tie=0.0)


def make_logits(seed: int = 0, n: int = 8, n_classes: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n_classes))


def make_report(*steps: Step) -> Report:
    return Report(
        task="pets",
        version="v1",
        precision="fp32",
        adapter_sha256="ab" * 32,
        data="noise",
        steps=steps,
    )


def judged(logits: np.ndarray, reference: np.ndarray, limits: Limits = LIMITS) -> Step:
    return judge("onnx-fp32", "noise", logits, [("ref", reference)], spread=1.0, limits=limits)


def test_equal_logits_have_no_error_and_full_agreement() -> None:
    logits = make_logits()
    found = compare(logits, logits.copy(), spread=1.0, against="ref")
    assert (found.max_abs, found.max_rel, found.error) == (0, 0, 0)
    assert found.min_cosine == pytest.approx(1)
    assert found.agreement == 1


def test_numbers_are_those_of_the_definition() -> None:
    a, b = make_logits(1), make_logits(2)
    found = compare(a, b, spread=0.5, against="ref")
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.max_rel == pytest.approx((np.abs(a - b) / np.abs(b)).max())
    assert found.error == pytest.approx(np.abs(a - b).max() / 0.5)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found.min_cosine == pytest.approx(cosines.min())
    assert found.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_an_error_beyond_the_share_of_the_spread_fails_and_says_so() -> None:
    reference = make_logits()
    limits = LIMITS.model_copy(update={"min_cosine": -1.0})
    assert judged(reference + 0.09, reference, limits).outcome == "pass"
    step = judged(reference + 0.11, reference, limits)
    assert step.outcome == "fail"
    assert "differ from ref by 1.10e-01" in step.reason
    assert "limit 0.1" in step.reason


def test_each_image_may_have_a_spread_of_its_own() -> None:
    reference = make_logits(n=2)
    other = reference + np.array([[0.2], [5.0]])
    found = compare(other, reference, spread=np.array([2.0, 100.0]), against="ref")
    assert found.max_abs == pytest.approx(5)
    assert found.error == pytest.approx(0.1)


def test_a_cosine_below_the_limit_fails_even_when_every_logit_is_close() -> None:
    reference = np.full((4, 5), 1e-3)
    reference[:, 0] = 2e-3
    other = reference.copy()
    other[2, 4] = -5e-3
    assert "cosine" in judged(other, reference).reason


def test_too_few_agreeing_top_classes_fail() -> None:
    reference = np.tile([1.0, 0.999, 0, 0, 0], (8, 1))
    other = reference.copy()
    other[:3, 1] = 1.001
    assert "62.5% of images" in judged(other, reference).reason


def test_a_tie_in_the_reference_may_be_broken_either_way_and_a_decision_may_not() -> None:
    limits = LIMITS.model_copy(update={"min_agreement": 1.0, "tie": 0.01})
    for margin, outcome in ((0.009, "pass"), (0.011, "fail")):
        reference = np.tile([1.0, 1.0 - margin, 0, 0, 0], (8, 1))
        other = reference.copy()
        other[3, 1] = 1.0001
        step = judged(other, reference, limits)
        assert step.outcome == outcome
        assert step.comparisons[0].agreement == 7 / 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fail_with_their_count(bad: float) -> None:
    logits = make_logits()
    logits[[1, 4], 2] = bad
    assert judged(logits, make_logits()).reason == "logits are not finite on 2 of 8 images"


def test_only_the_first_reference_decides_and_the_rest_are_recorded() -> None:
    reference = make_logits()
    step = judge(
        "s",
        "noise",
        reference,
        [("ref", reference), ("before", reference + 9)],
        spread=1.0,
        limits=LIMITS,
    )
    assert step.outcome == "pass"
    assert [c.against for c in step.comparisons] == ["ref", "before"]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(8, 5\), got \(7, 5\)"):
        compare(make_logits()[:7], make_logits(), spread=1, against="ref")


def test_a_report_survives_its_json_bit_for_bit() -> None:
    reference = make_logits()
    other = reference.copy()
    other[0, 0] = 0
    # Relative to a zero logit any error is infinite: JSON must carry that too.
    report = make_report(judged(reference, other), judged(reference * np.nan, reference))
    assert Report.from_json(report.to_json(), "parity.json") == report
    assert report.to_json() == Report.from_json(report.to_json(), "parity.json").to_json()


def test_damaged_json_is_refused_by_name() -> None:
    data = make_report().to_json()[:-20]
    with pytest.raises(ArtifactError, match=r"pets/parity\.json: not a parity report"):
        Report.from_json(data, "pets/parity.json")


def test_one_failed_step_fails_the_report_and_names_the_stage() -> None:
    good, bad = judged(make_logits(), make_logits()), judged(make_logits() + 1, make_logits())
    make_report(good).require_passed()
    with pytest.raises(ParityError, match="pets/v1 fp32: onnx-fp32 on noise: logits differ"):
        make_report(good, bad).require_passed()


def test_a_report_that_measured_nothing_does_not_pass() -> None:
    skipped = Step(stage="engine", inputs="x", n_images=0, outcome="skipped", reason="no GPU")
    assert not make_report(skipped).passed
    with pytest.raises(ParityError, match="nothing was measured"):
        make_report(skipped).require_passed()


def test_limits_loosen_with_the_precision() -> None:
    errors = [DEFAULT_LIMITS[p].max_error for p in ("fp32", "fp16", "bf16")]
    assert errors == sorted(errors)
