"""What an int8 model costs and brings: accuracy, bytes and time beside its float model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from glora_deploy.machine import Machine
from glora_deploy.parity import Comparison, Step, compare
from glora_deploy.record_file import read_record
from glora_deploy.store.export_record import INT8_REPORT_FILE
from glora_deploy.store.manifest_fields import Fraction, Sha256, TaskName, VersionName
from glora_deploy.strict_record import Count, Line, Record

from ..onnx_model.ort_session import PROVIDERS, OnnxSession
from .saturation import SUM_MAX, Target

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
    machine: Machine
    """That the figures hold for."""
    exact: bool
    """Whether it multiplied 8-bit numbers exactly, whatever they are."""
    target: Target
    """CPUs that the file was made for."""
    weight_bits: Literal[7, 8]
    """Of each weight."""
    largest_sum: Count
    """What two products may add up to; up to 32,767 is right on every CPU."""
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

    @property
    def holds_here(self) -> bool:
        """Whether every product of the model was right on the machine of the measurement."""
        return self.exact or self.largest_sum <= SUM_MAX

    @property
    def problem(self) -> str:
        """How much it loses, and what is to blame if that is known."""
        lost = f"loses {100 * self.loss:.1f} points of top-1"
        if self.accuracy is not None:
            lost += f" ({self.accuracy.before:.1%} to {self.accuracy.after:.1%})"
        saturates = ""
        if not self.holds_here:
            saturates = f"; {self.machine} saturates 8-bit products: leave out --int8-target"
        return (
            f"int8 must lose at most {100 * self.max_loss:g} percentage points, {lost} "
            f"on {self.n_test} images{saturates}"
        )

    def step(self) -> Step:
        """The report as a step of the parity check, against the float ONNX model."""
        failed = self.loss > self.max_loss
        return Step(
            stage="int8",
            inputs=self.data,
            n_images=self.n_test,
            outcome="fail" if failed else "pass",
            reason=self.problem if failed else "",
            comparisons=(self.comparison,),
            provider=PROVIDERS["cpu"][0],
        )

    @classmethod
    def read(cls, folder: Path) -> QuantizeReport:
        """The report beside an int8 model.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        return read_record(cls, folder / INT8_REPORT_FILE, "Quantise again.")


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
