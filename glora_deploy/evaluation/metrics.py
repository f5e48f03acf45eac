"""What the answers to labelled images are worth: accuracy, classes one by one, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteError
from .intervals import Interval, wilson_interval

TOP = 5
N_BINS = 15
"""Of the calibration error, as Guo et al. use them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One class against all others; None where there is nothing to take a share of."""

    label: str
    n_images: int
    """Images of this class (its support)."""
    n_predicted: int
    """Images that were answered with this class."""
    n_correct: int
    """Images that are both."""

    @property
    def precision(self) -> float | None:
        """``n_correct / n_predicted``."""
        return _share(self.n_correct, self.n_predicted)

    @property
    def recall(self) -> float | None:
        """``n_correct / n_images``: the accuracy on images of this class."""
        return _share(self.n_correct, self.n_images)

    @property
    def f1(self) -> float | None:
        """``2 n_correct / (n_images + n_predicted)``, the harmonic mean of the two above."""
        return _share(2 * self.n_correct, self.n_images + self.n_predicted)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedPair:
    """Images of one class that were answered with another."""

    label: str
    """The class they are of."""
    predicted: str
    """The class they were taken for."""
    n_images: int


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Metrics:
    """All that is counted of the answers to labelled images."""

    labels: tuple[str, ...]
    """Every class that can be answered, also those without an image."""
    confusion: NDArray[np.int64]
    """Images by their class (row) and by the class they were taken for (column)."""
    top5_accuracy: float | None
    """Share of images whose class is among the five largest logits, of equals those with the lower
    index; None with at most five classes, where it says nothing."""
    mean_confidence: float
    """Mean over the images of the largest softmax probability."""
    calibration_error: float
    """Expected calibration error (Guo et al., arXiv:1706.04599): confidences in ``N_BINS`` equal
    bins ``(low, high]``; the mean over the images of how far accuracy and mean confidence of their
    bin are apart."""

    @property
    def n_images(self) -> int:
        """Images answered."""
        return int(self.confusion.sum())

    @property
    def n_correct(self) -> int:
        """Images whose largest logit is that of their class."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """``n_correct / n_images``: top-1, 0 to 1."""
        return self.n_correct / self.n_images

    @property
    def interval(self) -> Interval:
        """Of the accuracy, at 95%: as ``wilson_interval``."""
        return wilson_interval(self.n_correct, self.n_images)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        return float(np.mean([c.recall for c in self.per_class if c.recall is not None]))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images or were answered."""
        return float(np.mean([c.f1 for c in self.per_class if c.f1 is not None]))

    @property
    def per_class(self) -> tuple[ClassMetrics, ...]:
        """Every class in the order of the labels."""
        counts = zip(
            self.labels,
            self.confusion.sum(1).tolist(),
            self.confusion.sum(0).tolist(),
            self.confusion.diagonal().tolist(),
            strict=True,
        )
        return tuple(
            ClassMetrics(label=label, n_images=images, n_predicted=predicted, n_correct=correct)
            for label, images, predicted, correct in counts
        )

    def most_confused(self, most: int = 5) -> tuple[ConfusedPair, ...]:
        """The commonest mistakes, the commonest first; of equals, in the order of the labels."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(self.labels)) for place in order]
        return tuple(
            ConfusedPair(
                label=self.labels[row],
                predicted=self.labels[column],
                n_images=int(wrong[row, column]),
            )
            for row, column in pairs
            if wrong[row, column]
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values: all of the above."""
        return {
            "n_images": self.n_images,
            "n_correct": self.n_correct,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "top5_accuracy": self.top5_accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "mean_confidence": self.mean_confidence,
            "calibration_error": self.calibration_error,
            "per_class": [each.to_dict() for each in self.per_class],
            "most_confused": [asdict(each) for each in self.most_confused()],
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
        }


def metrics_of(
    logits: NDArray[np.float32], targets: NDArray[np.int64], labels: Sequence[str]
) -> Metrics:
    """Count what the answers to labelled images are worth.

    Args:
        logits: ``(n, n_classes)``, n at least 1. Not modified.
        targets: Index of each image's class, ``(n,)``, 0 to ``n_classes - 1``. Not modified.
        labels: Name of each class, ``n_classes`` of them.

    Raises:
        ValueError: If the shapes do not go together, there is no image, or a target is no class.
        NonFiniteError: If a logit is NaN or infinite.
    """
    n_classes = len(labels)
    if not len(targets) or logits.shape != (len(targets), n_classes):
        raise ValueError(
            f"logits must have shape (n, n_classes)=({len(targets)}, {n_classes}), n at least 1, "
            f"got {logits.shape}"
        )
    if not 0 <= int(targets.min()) <= int(targets.max()) < n_classes:
        raise ValueError(
            f"targets must be 0 to {n_classes - 1}, got {targets.min()} to {targets.max()}"
        )
    if not np.isfinite(logits).all():
        raise NonFiniteError("logits must be finite, got NaN or infinity. Take fp32 weights.")
    predicted = logits.argmax(1)
    confusion = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    confidence = softmax(logits).max(1)
    return Metrics(
        labels=tuple(labels),
        confusion=confusion,
        top5_accuracy=_top_accuracy(logits, targets) if n_classes > TOP else None,
        mean_confidence=float(confidence.mean()),
        calibration_error=_calibration_error(confidence, predicted == targets),
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probability of each class, ``(n, n_classes)``, float64; each row sums to 1."""
    shares: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares


def _top_accuracy(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    return float((best == targets[:, None]).any(1).mean())


def _calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    bins = np.ceil(confidence * N_BINS).astype(np.int64) - 1  # no confidence is 0
    gaps = np.bincount(bins, confidence, N_BINS) - np.bincount(bins, correct, N_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
