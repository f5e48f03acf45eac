"""Run every stage of one export on the same inputs and report how they compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import MissingDependencyError, NonFiniteError
from glora_deploy.machine import Machine
from glora_deploy.parity import DEFAULT_LIMITS, Limits, Report, Step, judge
from glora_deploy.precision import Precision
from glora_deploy.release_memory import release_memory
from glora_deploy.store.manifest import Manifest

from .batch_sizes import Logits, in_batches
from .inputs import ParityInputs
from .stages import REFERENCE, SkipStage, Stage

_Measured = Mapping[str, NDArray[Any]]
"""Logits ``(n, n_classes)`` by what was fed in."""


def check_parity(
    manifest: Manifest,
    inputs: ParityInputs,
    precision: Precision,
    reference: Callable[[], Logits],
    stages: Sequence[Stage],
    *,
    limits: Mapping[Precision, Limits] = DEFAULT_LIMITS,
    overflow: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure each stage against the float64 merged network and against the stage before it.

    Args:
        manifest: Of the delta that the stages come from.
        inputs: What every stage sees, in the same order and the same batches.
        precision: Of the export, for the report.
        reference: Makes the float64 network ready.
        stages: In order, from the training graph to the last file.
        limits: By precision of the stage.
        overflow: Operations kept in fp32, for the report.
        on_step: Told the name of each stage before it runs.

    Raises:
        NonFiniteError: If the float64 network itself gives NaN or infinity.
    """
    sets = {
        inputs.data: inputs.ordinary,
        "zeros and images of one colour": inputs.flat,
        "noise at extreme scales": inputs.wild,
    }
    found: dict[str, _Measured] = {}
    skipped: dict[str, str] = {}
    # What needs no torch runs before torch is in memory beside it.
    for stage in sorted(stages, key=lambda stage: stage.torch):
        on_step(stage.name)
        try:
            found[stage.name] = _measure(stage.load(), sets)
        except (SkipStage, MissingDependencyError) as reason:
            skipped[stage.name] = str(reason)
        release_memory()
    on_step(REFERENCE)
    truth = _measure(reference(), sets)
    for name, logits in truth.items():
        if not np.isfinite(logits).all():
            raise NonFiniteError(f"{manifest.task}: the float64 logits of {name} must be finite")
    return Report(
        task=manifest.task,
        version=manifest.version,
        precision=precision,
        adapter_sha256=manifest.adapter.sha256,
        data=inputs.data,
        overflow=tuple(overflow),
        steps=tuple(_judge(stages, found, skipped, truth, inputs.data, limits)),
        machine=Machine.here(),
    )


def _measure(run: Logits, sets: Mapping[str, NDArray[Any]]) -> _Measured:
    release_memory()
    return {name: in_batches(run)(images) for name, images in sets.items()}


def _judge(
    stages: Sequence[Stage],
    found: Mapping[str, _Measured],
    skipped: Mapping[str, str],
    truth: _Measured,
    ordinary: str,
    limits: Mapping[Precision, Limits],
) -> Iterator[Step]:
    """A step for each stage and what it was fed, in the order of the stages."""
    spread = float(np.std(truth[ordinary]))
    # Noise at 1e4 has logits 1e4 as large where nothing normalises them, and so their rounding is.
    spreads: dict[str, float | NDArray[Any]] = {
        name: np.maximum(spread, logits.std(axis=1)) for name, logits in truth.items()
    } | {ordinary: spread}
    before = ""
    for stage in stages:
        if (reason := skipped.get(stage.name)) is not None:
            yield Step(
                stage=stage.name, inputs=ordinary, n_images=0, outcome="skipped", reason=reason
            )
            continue
        for name, logits in found[stage.name].items():
            references = [(REFERENCE, truth[name])]
            if before:
                references.append((before, found[before][name]))
            step = judge(
                stage.name,
                name,
                logits,
                references,
                spread=spreads[name],
                limits=limits[stage.precision],
            )
            yield step.model_copy(update={"provider": stage.provider})
        before = stage.name
