"""Do two stages compute the same? Logits in, a verdict with its numbers out.

Torch-free: a server may check an engine with it. Errors are judged against the *spread* of the
reference logits (their standard deviation), since a bare tolerance means nothing across tasks. An
input far outside what images hold may have logits as far outside: there the spread is its own.
Element-wise errors and cosines are Polygraphy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .errors import ParityError
from .machine import Machine
from .precision import Precision
from .record_file import parse_record

PARITY_FILE = "parity.json"
"""The report beside the files of an export."""

Outcome = Literal["pass", "fail", "skipped"]


class _Value(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings"
    )


class Limits(_Value):
    """What a stage may differ by and still count as the same."""

    max_error: float
    """Largest absolute error, as a share of the reference logits' spread."""
    min_cosine: float
    """Smallest cosine between the logits of one image."""
    min_agreement: float
    """Share of images whose top class must be the reference's; 0 to 1."""
    tie: float
    """A class that the reference itself puts this close below its top one, as a share of the
    spread, counts as its top class too: rounding decides between the two."""


DEFAULT_LIMITS: dict[Precision, Limits] = {
    # fp32 sums of a few thousand terms over a dozen blocks leave a few 1e-6 of the spread.
    "fp32": Limits(max_error=1e-3, min_cosine=0.99999, min_agreement=1.0, tie=1e-4),
    # fp16 carries 11 bits: 5e-4 a rounding, some tens of roundings deep.
    "fp16": Limits(max_error=5e-2, min_cosine=0.999, min_agreement=0.98, tie=1e-2),
    # bf16 carries 8 bits, eight times coarser.
    "bf16": Limits(max_error=4e-1, min_cosine=0.99, min_agreement=0.95, tie=8e-2),
}


def limits_with(precision: Precision, max_error: float | None) -> dict[Precision, Limits]:
    """The default limits, with another ``max_error`` for one precision.

    Raises:
        ValueError: If it is below 0 or not a number.
    """
    limits = dict(DEFAULT_LIMITS)
    if max_error is not None:
        if not max_error >= 0:
            raise ValueError(f"max_error must be at least 0, got {max_error}")
        limits[precision] = limits[precision].model_copy(update={"max_error": max_error})
    return limits


class Comparison(_Value):
    """How far one array of logits is from another, over all images."""

    against: str
    """The stage compared with."""
    max_abs: float
    """Largest absolute difference of a logit."""
    max_rel: float
    """Largest difference relative to the other stage's logit, element by element."""
    error: float
    """Largest absolute difference as a share of the reference's spread."""
    min_cosine: float
    """Over images."""
    agreement: float
    """Share of images with the same top class."""
    decided_agreement: float
    """The same, where a tie in the other stage counts for either class."""


class PixelDifference(_Value):
    """How far the pixels of a graph that resizes by itself are from Pillow's."""

    max_levels: float
    """Largest difference of a colour value, of 0 to 255."""
    share: float
    """Of the colour values that differ at all; 0 to 1."""


PIXEL_LIMIT = PixelDifference(max_levels=1, share=0.01)
"""Where doubles round otherwise, a value that lies between two levels may become the other."""


class Step(_Value):
    """One stage on one set of inputs."""

    stage: str
    """merged-fp32, onnx-fp16, ..."""
    inputs: str
    """What was fed in: real images, noise, extreme inputs."""
    n_images: int
    outcome: Outcome
    reason: str = ""
    """Why it failed or was skipped; empty for a pass."""
    limits: Limits | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Against the float64 reference first, then against the stage before."""
    provider: str = ""
    """What computed it, such as ONNX Runtime's execution provider; empty if it was not recorded."""
    pixels: PixelDifference | None = None
    """Of a model that takes decoded pixels."""


class Report(_Value):
    """Every step of one export, as stored in parity.json."""

    task: str
    version: str
    precision: Precision
    adapter_sha256: str
    """Of the delta that the compared stages come from."""
    data: str
    """Where the images came from."""
    overflow: tuple[str, ...] = ()
    """Operations kept in fp32 because their values leave the half-precision range."""
    steps: tuple[Step, ...]
    machine: Machine | None = None
    """Where all of it was measured; None in reports from before it was recorded."""

    @property
    def passed(self) -> bool:
        """No step failed, and at least one was measured."""
        outcomes = [step.outcome for step in self.steps]
        return "fail" not in outcomes and "pass" in outcomes

    def to_json(self) -> bytes:
        """UTF-8 JSON, the same bytes for the same report."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Report:
        """Read parity.json.

        Raises:
            ArtifactError: If it is not one; ``where`` names the file.
        """
        return parse_record(cls, data, where, "Export it again.")

    def require_passed(self) -> None:
        """Raise for the first failed step.

        Raises:
            ParityError: If a step failed or none was measured.
        """
        for step in self.steps:
            if step.outcome == "fail":
                raise ParityError(
                    f"{self.task}/{self.version} {self.precision}: {step.stage} on {step.inputs}: "
                    f"{step.reason}. The export is marked unusable."
                )
        if not self.passed:
            raise ParityError(f"{self.task}/{self.version} {self.precision}: nothing was measured")


def compare(
    logits: NDArray[Any],
    other: NDArray[Any],
    *,
    spread: float | NDArray[Any],
    against: str,
    tie: float = 0.0,
) -> Comparison:
    """Measure one stage's logits against another's.

    Args:
        logits: ``(n, n_classes)``, finite.
        other: ``(n, n_classes)``, finite; the stage compared with.
        spread: What errors are shares of: one number, or ``(n,)`` with one for each image.
        against: Name of the other stage.
        tie: As in ``Limits``.

    Raises:
        ValueError: If the shapes differ or there is nothing to compare.
    """
    from polygraphy.comparator import (  # an import of a second and a half
        CosineSimilarityCompareFunc,
        IterationResult,
        SimpleCompareFunc,
    )
    from polygraphy.logger import G_LOGGER

    if logits.shape != other.shape or not logits.size:
        raise ValueError(f"logits must have shape {other.shape}, got {logits.shape}")
    wide, wide_other = logits.astype(np.float64), other.astype(np.float64)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        whole = SimpleCompareFunc(check_error_stat="max")(
            IterationResult({"logits": wide}), IterationResult({"logits": wide_other})
        )["logits"]
        by_image = CosineSimilarityCompareFunc()(
            IterationResult({str(i): row for i, row in enumerate(wide)}),
            IterationResult({str(i): row for i, row in enumerate(wide_other)}),
        )
    chosen = np.take_along_axis(wide_other, wide.argmax(1)[:, None], 1)[:, 0]
    furthest = np.abs(wide - wide_other).max(axis=1)
    scale = np.maximum(spread, np.finfo(np.float64).tiny)
    return Comparison(
        against=against,
        max_abs=float(whole.max_absdiff),
        max_rel=float(whole.max_reldiff),
        error=float(np.max(furthest / scale)),
        min_cosine=min(float(result.cosine_similarity) for result in by_image.values()),
        agreement=float(np.mean(logits.argmax(1) == other.argmax(1))),
        decided_agreement=float(np.mean(wide_other.max(1) - chosen <= tie * spread)),
    )


def judge(
    stage: str,
    inputs: str,
    logits: NDArray[Any],
    references: Sequence[tuple[str, NDArray[Any]]],
    *,
    spread: float | NDArray[Any],
    limits: Limits,
    what: str = "logits",
) -> Step:
    """Compare a stage with the reference, and with the stage before it, and pass or fail it.

    Args:
        stage: Its name.
        inputs: What was fed in.
        logits: What it computed, ``(n, n_classes)``.
        references: Name and logits: the float64 reference, which decides, then any others, which
            are recorded.
        spread: As for ``compare``.
        limits: What the first comparison must keep.
        what: What is compared, for the reason of a failure.
    """
    n = len(logits)
    decisive, reference = references[0]
    for whose, values in (("", logits), (f"{decisive}: ", reference)):
        if bad := int((~np.isfinite(values).all(axis=1)).sum()):
            reason = f"{whose}{what} are not finite on {bad} of {n} images"
            return Step(
                stage=stage, inputs=inputs, n_images=n, outcome="fail", reason=reason, limits=limits
            )
    comparisons = tuple(
        compare(logits, other, spread=spread, against=name, tie=limits.tie)
        for name, other in references
        if np.isfinite(other).all()
    )
    reason = _violation(comparisons[0], limits, what)
    return Step(
        stage=stage,
        inputs=inputs,
        n_images=n,
        outcome="fail" if reason else "pass",
        reason=reason,
        limits=limits,
        comparisons=comparisons,
    )


def _violation(found: Comparison, limits: Limits, what: str) -> str:
    if not found.error <= limits.max_error:
        return (
            f"{what} differ from {found.against} by {found.max_abs:.2e}, {found.error:.2e} of "
            f"their spread, limit {limits.max_error:g}"
        )
    if not found.min_cosine >= limits.min_cosine:
        return f"cosine with {found.against} is {found.min_cosine:.6f}, limit {limits.min_cosine:g}"
    if not found.decided_agreement >= limits.min_agreement:
        return (
            f"top class agrees with {found.against} on {found.decided_agreement:.1%} of images, "
            f"limit {limits.min_agreement:.1%}"
        )
    return ""
