"""Metrics against scikit-learn on random answers, and by hand where it has no such figure."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.errors import NonFiniteError
from glora_deploy.evaluation.metrics import Metrics, metrics_of, softmax

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn")

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
NO_IMAGE, NEVER_ANSWERED = 3, 5


def random_answers(seed: int, n: int = 200) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Answers that are often right; one class has no image and another is never answered."""
    rng = np.random.default_rng(seed)
    targets = rng.choice([i for i in range(len(LABELS)) if i != NO_IMAGE], n)
    logits = rng.normal(0, 1, (n, len(LABELS)))
    logits[np.arange(n), targets] += 1
    logits[:, NEVER_ANSWERED] = -9 - rng.random(n)
    return logits.astype(np.float32), targets.astype(np.int64)


@pytest.fixture(params=range(3))
def answers(request: pytest.FixtureRequest) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return random_answers(request.param)


@pytest.mark.filterwarnings(
    # The balanced accuracy of scikit-learn warns of the class without an image that is answered.
    "ignore:y_pred contains classes not in y_true:UserWarning"
)
def test_every_figure_that_scikit_learn_has_is_the_same(
    answers: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    logits, targets = answers
    predicted = logits.argmax(1)
    found = metrics_of(logits, targets, LABELS)
    every = list(range(len(LABELS)))
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(targets, predicted))
    assert found.balanced_accuracy == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(targets, predicted)
    )
    assert found.macro_f1 == pytest.approx(
        sklearn_metrics.f1_score(targets, predicted, average="macro")
    )
    assert found.top5_accuracy == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(targets, logits, k=5, labels=every)
    )
    confusion = sklearn_metrics.confusion_matrix(targets, predicted, labels=every)
    assert np.array_equal(found.confusion, confusion)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        targets, predicted, labels=every, zero_division=np.nan
    )
    for index, one in enumerate(found.per_class):
        assert one.label == LABELS[index]
        assert one.n_images == support[index]
        for ours, theirs in (
            (one.precision, precision[index]),
            (one.recall, recall[index]),
            (one.f1, f1[index]),
        ):
            assert (math.isnan(theirs) and ours is None) or ours == pytest.approx(theirs)


def test_a_class_without_images_has_no_recall_and_one_never_answered_no_precision(
    answers: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    classes = metrics_of(*answers, LABELS).per_class
    assert classes[NO_IMAGE].recall is None
    assert classes[NO_IMAGE].precision == 0
    assert classes[NO_IMAGE].f1 == 0
    assert classes[NEVER_ANSWERED].precision is None
    assert classes[NEVER_ANSWERED].recall == 0


def test_the_calibration_error_is_the_gap_of_each_bin_by_its_images() -> None:
    # Two classes: confidence p has logits log(p) and log(1 - p).
    confidence = np.array([0.61, 0.64, 0.66, 0.95, 0.99])
    correct = np.array([True, False, True, True, True])
    logits = np.log(np.stack([confidence, 1 - confidence], 1)).astype(np.float32)
    targets = np.where(correct, 0, 1).astype(np.int64)
    found = metrics_of(logits, targets, ("a", "b"))
    # Bins of 1/15: three images in (0.6, 0.667], the others in (0.933, 1].
    gaps = abs(2 / 3 - confidence[:3].mean()) * 3 + abs(1 - confidence[3:].mean()) * 2
    assert found.calibration_error == pytest.approx(gaps / 5, abs=1e-6)
    assert found.mean_confidence == pytest.approx(confidence.mean(), abs=1e-6)
    assert found.top5_accuracy is None


def test_every_bin_from_the_lowest_on_counts_for_itself() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, rng.choice([0.05, 0.3, 2], (400, 1)), (400, 25)).astype(np.float32)
    targets = rng.integers(0, 25, 400)
    confidence, correct = softmax(logits).max(1), logits.argmax(1) == targets
    expected, filled = 0.0, 0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            filled += 1
            expected += abs(correct[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert filled > 8
    assert confidence.min() < 1 / 15
    found = metrics_of(logits, targets, [f"class {i}" for i in range(25)])
    assert found.calibration_error == pytest.approx(expected)


def test_confidences_at_the_ends_are_counted() -> None:
    logits = np.array([[0, 0], [90, -90]], np.float32)  # 1/2, and 1 to the last bit
    found = metrics_of(logits, np.array([0, 0]), ("a", "b"))
    assert found.calibration_error == pytest.approx(0.25)


def test_the_commonest_mistakes_come_first() -> None:
    confusion = np.array([[5, 2, 0], [3, 9, 3], [0, 0, 1]])
    found = Metrics(
        labels=("a", "b", "c"),
        confusion=confusion,
        top5_accuracy=None,
        mean_confidence=0.5,
        calibration_error=0.0,
    )
    pairs = [(p.label, p.predicted, p.n_images) for p in found.most_confused()]
    assert pairs == [("b", "a", 3), ("b", "c", 3), ("a", "b", 2)]
    assert found.most_confused(1) == found.most_confused()[:1]
    assert confusion.trace() == 15  # not modified


def test_the_softmax_of_large_logits_is_finite_and_sums_to_one() -> None:
    found = softmax(np.array([[1e4, 0, -1e4], [1, 1, 1]], np.float32))
    assert found[0].tolist() == [1, 0, 0]
    assert found.sum(1) == pytest.approx(1)


def test_as_json_values_it_can_be_written_and_holds_every_count(
    answers: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    found = metrics_of(*answers, LABELS)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["accuracy"] == found.accuracy
    assert np.array_equal(read["confusion"], found.confusion)
    assert read["per_class"][NEVER_ANSWERED]["precision"] is None
    low, high = read["interval"]
    assert low < found.accuracy < high


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (np.zeros((0, 2)), [], ValueError, r"n at least 1, got \(0, 2\)"),
        (np.zeros((3, 2)), [0, 1], ValueError, r"=\(2, 2\), n at least 1, got \(3, 2\)"),
        (np.zeros((2, 3)), [0, 1], ValueError, r"=\(2, 2\), n at least 1, got \(2, 3\)"),
        (np.zeros((2, 2)), [0, 2], ValueError, "targets must be 0 to 1, got 0 to 2"),
        (np.zeros((2, 2)), [-1, 0], ValueError, "targets must be 0 to 1, got -1 to 0"),
        (np.array([[0, np.nan]]), [0], NonFiniteError, "logits must be finite"),
        (np.array([[0, -np.inf]]), [0], NonFiniteError, "logits must be finite"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    logits: NDArray[np.float32], targets: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metrics_of(logits, np.array(targets, np.int64), ("a", "b"))
