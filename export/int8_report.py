"""What an int8 model costs and brings: accuracy, bytes and time beside its float model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from glora_deploy.errors import ArtifactError
from glora_deploy.parity import Comparison, compare
from glora_deploy.records import (
    Count,
    Fraction,
    Line,
    Record,
    Sha256,
    TaskName,
    VersionName,
    first_problem,
)

from .files import INT8_REPORT_FILE
from .runtime import OnnxSession

FLOAT_STAGE = "onnx-fp32"

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Accuracy(Record):
    """Top-1 on labelled images, before and after."""

    before: Fraction
    after: Fraction
    lost: Count
    """Images that only the float model gets right."""
    gained: Count
    """Images that only the int8 model gets right; losses smaller than ``sqrt(lost + gained)``
    images are chance."""


class Latency(Record):
    """Median time of one call, the two models taking turns."""

    batch: Count
    float_ms: Milliseconds
    int8_ms: Milliseconds

    @property
    def speedup(self) -> float:
        """How many times faster int8 is."""
        return self.float_ms / self.int8_ms


class QuantizeReport(Record):
    """All of int8.json."""

    task: TaskName
    version: VersionName
    adapter_sha256: Sha256
    data: Line
    """Where the images came from."""
    n_calibration: Count
    """Images the ranges of activations were taken from."""
    n_test: Count
    """Other images, on which the two models were compared."""
    accuracy: Accuracy | None
    """None where the images have no labels: seeded noise."""
    comparison: Comparison
    """Logits of int8 against float."""
    max_loss: Fraction
    """Loss that was allowed."""
    float_bytes: Count
    """Graph and weights."""
    int8_bytes: Count
    latency: tuple[Latency, ...]
    threads: Count | None
    """Threads of both; None for ONNX Runtime's own choice."""
    seven_bit: bool
    """Whether weights use 7 bits, which every x86 CPU multiplies exactly."""
    quantized: Count
    """Layers that compute in 8 bits."""
    kept_float: tuple[Line, ...]
    """Layers with weights that stayed float."""

    @property
    def loss(self) -> float:
        """Share of images lost: by accuracy, or without labels, whose top class changed."""
        if self.accuracy is None:
            return 1 - self.comparison.agreement
        return self.accuracy.before - self.accuracy.after

    def to_json(self) -> bytes:
        """The bytes of int8.json."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> QuantizeReport:
        """The report beside an int8 model.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        path = folder / INT8_REPORT_FILE
        if not path.is_file():
            raise ArtifactError(f"{path}: must be a file, none is here. Quantise again.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ArtifactError(f"{path}: {first_problem(error)}. Quantise again.") from error


class Batch(NamedTuple):
    """Some preprocessed images."""

    images: NDArray[np.float32]
    """``(n, c, h, w)``."""
    labels: NDArray[np.int64] | None
    """``(n,)``; None for noise."""


def compare_models(
    before: OnnxSession, after: OnnxSession, batches: Iterable[Batch]
) -> tuple[Accuracy | None, Comparison, int]:
    """Run both models over the same images.

    Returns:
        Accuracies if every batch has labels, how the logits differ, and the number of images.

    Raises:
        ValueError: If there are no images.
    """
    rows = [(before.logits(b.images), after.logits(b.images), b.labels) for b in batches]
    if not rows:
        raise ValueError("there must be at least one batch of images, got none")
    old = np.concatenate([row[0] for row in rows])
    new = np.concatenate([row[1] for row in rows])
    comparison = compare(new, old, spread=float(np.std(old)), against=FLOAT_STAGE)
    labels = [row[2] for row in rows if row[2] is not None]
    if len(labels) < len(rows):
        return None, comparison, len(old)
    right = np.concatenate(labels)
    old_right, new_right = old.argmax(1) == right, new.argmax(1) == right
    accuracy = Accuracy(
        before=float(old_right.mean()),
        after=float(new_right.mean()),
        lost=int((old_right & ~new_right).sum()),
        gained=int((new_right & ~old_right).sum()),
    )
    return accuracy, comparison, len(old)


def time_models(
    before: OnnxSession,
    after: OnnxSession,
    images: NDArray[np.float32],
    *,
    rounds: int = 25,
    limit_s: float = 5.0,
) -> Latency:
    """Time both on one batch, taking turns so that a busy machine slows both alike.

    Args:
        before: The float model.
        after: The int8 model.
        images: ``(n, c, h, w)``.
        rounds: Most calls of each that are timed.
        limit_s: No new round starts after this many seconds.
    """
    for session in (before, after):
        session.logits(images)
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < rounds and (not times[0] or time.perf_counter() - start < limit_s):
        for session, taken in zip((before, after), times, strict=True):
            begin = time.perf_counter()
            session.logits(images)
            taken.append(1e3 * (time.perf_counter() - begin))
    return Latency(batch=len(images), float_ms=median(times[0]), int8_ms=median(times[1]))
