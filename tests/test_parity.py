from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from glora_deploy.errors import ArtifactError, ParityError
from glora_deploy.parity import (
    DEFAULT_LIMITS,
    PARITY_FILE,
    Limits,
    PixelDifference,
    Report,
    Step,
    compare,
    judge,
)

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
    step = judge("s", "x", reference + 0.22, [("ref", reference)], spread=2.0, limits=limits)
    assert step.outcome == "fail"
    assert step.reason == "logits differ from ref by 2.20e-01, 1.10e-01 of their spread, limit 0.1"


def test_what_is_as_large_as_its_limit_passes() -> None:
    reference = np.array([[8.0, 0, 0]] * 4)
    other = reference + np.array([[0, 0, 4.0]] * 4)
    found = judged(other, reference, Limits(max_error=9, min_cosine=0, min_agreement=0, tie=0))
    (comparison,) = found.comparisons
    assert comparison.error == 4
    exact = {"max_error": 4.0, "min_cosine": comparison.min_cosine, "min_agreement": 1.0, "tie": 0}
    assert judged(other, reference, Limits(**exact)).outcome == "pass"
    for name, beyond in (("max_error", 3.999), ("min_cosine", comparison.min_cosine + 1e-9)):
        assert judged(other, reference, Limits(**{**exact, name: beyond})).outcome == "fail"


def test_a_step_keeps_what_was_fed_in_and_what_it_had_to_keep() -> None:
    reference = make_logits()
    for logits, outcome in (
        (reference, "pass"),
        (reference + 1, "fail"),
        (np.inf * reference, "fail"),
    ):
        step = judged(logits, reference)
        assert (step.stage, step.inputs, step.n_images) == ("onnx-fp32", "noise", 8)
        assert step.outcome == outcome
        assert step.limits == LIMITS
        assert bool(step.reason) == (outcome == "fail")


def test_logits_without_any_spread_differ_by_more_than_any_limit() -> None:
    reference = np.zeros((2, 3))
    assert compare(reference, reference, spread=0.0, against="ref").error == 0
    assert compare(reference + 1e-9, reference, spread=0.0, against="ref").error > 1e200


def test_a_comparison_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    compare(make_logits(1), make_logits(2), spread=1.0, against="ref")
    assert capfd.readouterr() == ("", "")


def test_half_precision_logits_are_compared_in_float64() -> None:
    reference = np.array([[2048.0, 1.0]])
    half = np.array([[2048.0, 2.0]], np.float16)
    found = compare(half, reference, spread=1.0, against="ref")
    assert found.max_abs == 1
    assert found.min_cosine == pytest.approx(
        (2048**2 + 2) / np.sqrt((2048**2 + 4) * (2048**2 + 1)), rel=1e-15
    )


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
    step = judged(other, reference)
    cosine = (5 * 1e-6 + 3e-6 - 6e-6) / (np.sqrt(8e-6) * np.sqrt(7e-6 + 25e-6))
    assert step.comparisons[0].min_cosine == pytest.approx(cosine)
    assert step.reason == f"cosine with ref is {cosine:.6f}, limit 0.99"


def test_too_few_agreeing_top_classes_fail() -> None:
    reference = np.tile([1.0, 0.999, 0, 0, 0], (8, 1))
    other = reference.copy()
    other[:3, 1] = 1.001
    step = judged(other, reference)
    assert step.outcome == "fail"
    assert step.reason == "top class agrees with ref on 62.5% of images, limit 75.0%"
    other[:1, 1] = 0.999
    assert judged(other, reference).outcome == "pass"


def test_a_tie_in_the_reference_may_be_broken_either_way_and_a_decision_may_not() -> None:
    limits = LIMITS.model_copy(update={"min_agreement": 1.0, "tie": 0.01})
    for margin, outcome in ((0.009, "pass"), (0.011, "fail")):
        reference = np.tile([1.0, 1.0 - margin, 0, 0, 0], (8, 1))
        other = reference.copy()
        other[3, 1] = 1.0001
        step = judged(other, reference, limits)
        assert step.outcome == outcome
        assert step.comparisons[0].agreement == 7 / 8


def test_a_tie_is_a_share_of_the_spread() -> None:
    reference = np.array([[1.0, 0.985, 0]] * 4)
    other = np.array([[1.0, 1.001, 0]] * 4)
    decided = [
        compare(other, reference, spread=spread, against="ref", **tie).decided_agreement
        for spread, tie in (
            (2.0, {"tie": 0.01}),
            (1.0, {"tie": 0.01}),
            (np.array([2.0, 1.0, 1.0, 1.0]), {"tie": 0.01}),
            (2.0, {}),
        )
    ]
    assert decided == [1, 0, 0.25, 0]


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
    assert [c.max_abs for c in step.comparisons] == [0, 9]


def test_what_is_compared_is_named_in_the_reason() -> None:
    reference = make_logits()
    step = judge(
        "s", "x", reference + 1, [("r", reference)], spread=1.0, limits=LIMITS, what="shares"
    )
    assert step.reason.startswith("shares differ from r by 1.00e+00")
    bad = judge(
        "s", "x", reference * np.nan, [("r", reference)], spread=1.0, limits=LIMITS, what="shares"
    )
    assert bad.reason == "shares are not finite on 8 of 8 images"


def test_a_stage_before_that_is_not_finite_is_left_out() -> None:
    reference = make_logits()
    references = [("ref", reference), ("before", reference * np.nan), ("first", reference + 1)]
    step = judge("s", "noise", reference, references, spread=1.0, limits=LIMITS)
    assert step.outcome == "pass"
    assert [c.against for c in step.comparisons] == ["ref", "first"]


def test_a_reference_that_is_not_finite_fails_whatever_the_stage_before_says() -> None:
    logits = make_logits()
    reference = logits.copy()
    reference[[2, 5, 6], 1] = np.inf
    for more in ([], [("before", logits)]):
        step = judge("s", "noise", logits, [("ref", reference), *more], spread=1.0, limits=LIMITS)
        assert step.outcome == "fail"
        assert step.reason == "ref: logits are not finite on 3 of 8 images"


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^logits must have shape \(8, 5\), got \(7, 5\)$"):
        compare(make_logits()[:7], make_logits(), spread=1, against="ref")
    with pytest.raises(ValueError, match=r"^logits must have shape \(0, 5\), got \(0, 5\)$"):
        compare(make_logits()[:0], make_logits()[:0], spread=1, against="ref")


def test_a_report_survives_its_json_bit_for_bit() -> None:
    reference = make_logits()
    other = reference.copy()
    other[0, 0] = 0
    report = make_report(judged(reference, other), judged(reference * np.nan, reference))
    assert Report.from_json(report.to_json(), "parity.json") == report
    assert report.to_json() == Report.from_json(report.to_json(), "parity.json").to_json()


def test_the_bytes_of_a_report_are_these() -> None:
    measured = judged(np.array([[2.0, 9.0]]), np.array([[2.0, 0.0]]))
    infinite = measured.comparisons[0].model_copy(update={"error": np.inf})
    measured = measured.model_copy(update={"comparisons": (infinite,)})
    skipped = Step(stage="engine", inputs="x", n_images=0, outcome="skipped", reason="no GPU")
    data = make_report(measured, skipped).to_json()
    assert data.startswith(b'{\n  "task": "pets",\n  "version": "v1",\n')
    assert data.endswith(b"}\n")
    assert PARITY_FILE == "parity.json"
    fields = json.loads(data)
    comparison = fields["steps"][0]["comparisons"][0]
    assert comparison["max_abs"] == 9
    assert comparison["error"] == "Infinity"
    assert Report.from_json(data, "parity.json").steps[0] == measured
    assert fields["overflow"] == []
    assert fields["steps"][1] == {
        "stage": "engine",
        "inputs": "x",
        "n_images": 0,
        "outcome": "skipped",
        "reason": "no GPU",
        "provider": "",
        "limits": None,
        "comparisons": [],
        "pixels": None,
    }
    seen = skipped.model_copy(update={"pixels": PixelDifference(max_levels=1, share=0.25)})
    again = make_report(seen).to_json()
    assert json.loads(again)["steps"][0]["pixels"] == {"max_levels": 1, "share": 0.25}
    assert Report.from_json(again, "parity.json").steps == (seen,)


def test_damaged_json_is_refused_by_name() -> None:
    data = make_report().to_json()
    with pytest.raises(ArtifactError) as caught:
        Report.from_json(data[:-20], "pets/parity.json")
    assert re.fullmatch(
        r"pets/parity\.json: Invalid JSON: .+\. Export it again\.",
        str(caught.value),
    )
    for wrong, why in (
        (b'"precision": "fp8"', "precision: must be 'fp32', 'fp16' or 'bf16', got 'fp8'"),
        (b'"precision": "fp32", "more": 1', "more: is not a field of this format"),
    ):
        changed = data.replace(b'"precision": "fp32"', wrong)
        with pytest.raises(ArtifactError, match=re.escape(f"parity.json: {why}. Export it again.")):
            Report.from_json(changed, "parity.json")


def test_a_verdict_cannot_be_changed() -> None:
    step = judged(make_logits() + 1, make_logits())
    with pytest.raises(ValidationError, match="frozen"):
        step.outcome = "pass"  # type: ignore[misc]


def test_one_failed_step_fails_the_report_and_names_the_stage() -> None:
    good, bad = judged(make_logits(), make_logits()), judged(make_logits() + 1, make_logits())
    make_report(good).require_passed()
    assert make_report(good).passed
    assert not make_report(good, bad).passed
    reason = re.escape(f"pets/v1 fp32: onnx-fp32 on noise: {bad.reason}. ")
    with pytest.raises(ParityError, match=f"^{reason}The export is marked unusable\\.$"):
        make_report(good, bad).require_passed()


def test_a_report_that_measured_nothing_does_not_pass() -> None:
    skipped = Step(stage="engine", inputs="x", n_images=0, outcome="skipped", reason="no GPU")
    assert not make_report(skipped).passed
    with pytest.raises(ParityError, match=r"^pets/v1 fp32: nothing was measured$"):
        make_report(skipped).require_passed()
    good = judged(make_logits(), make_logits())
    assert make_report(good, skipped).passed


def test_the_limits_are_these_and_loosen_with_the_precision() -> None:
    assert {p: tuple(limits.model_dump().values()) for p, limits in DEFAULT_LIMITS.items()} == {
        "fp32": (0.001, 0.99999, 1.0, 0.0001),
        "fp16": (0.05, 0.999, 0.98, 0.01),
        "bf16": (0.4, 0.99, 0.95, 0.08),
    }
