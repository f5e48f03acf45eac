"""Run every stage of one export on the same inputs and report how they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glora_deploy.errors import MissingDependencyError
from glora_deploy.parity import DEFAULT_LIMITS, Limits, Precision, Report, Step, judge

from .inputs import ParityInputs
from .stages import Logits, TaskNetwork, in_batches, torch_logits

REFERENCE = "merged-fp64"


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing that computes logits, and how closely it must do so."""

    name: str
    precision: Precision
    load: Callable[[], Logits]
    """Makes it ready; called once, and the result dropped before the next stage is loaded. A
    MissingDependencyError skips the stage."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A stage that cannot run here, and why."""

    name: str
    reason: str


def verify(
    network: TaskNetwork,
    inputs: ParityInputs,
    precision: Precision,
    stages: Sequence[Stage | Skipped],
    *,
    limits: Mapping[Precision, Limits] = DEFAULT_LIMITS,
    overflow: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure each stage against the float64 merged network and against the stage before it.

    Args:
        network: Gives the reference.
        inputs: What every stage sees, in the same order and the same batches.
        precision: Of the export, for the report.
        stages: In order, from the training graph to the last file.
        limits: By precision of the stage.
        overflow: Operations kept in fp32, for the report.
        on_step: Told the name of each stage before it runs.
    """
    sets = {
        inputs.data: inputs.ordinary,
        "zeros and images of one colour": inputs.flat,
        "noise at extreme scales": inputs.wild,
    }
    on_step(REFERENCE)
    run = torch_logits(network.merged(torch.float64))
    reference = {name: run(images) for name, images in sets.items()}
    del run
    spread = float(np.std(reference[inputs.data]))
    before: dict[str, tuple[str, NDArray[Any]]] = {}
    steps: list[Step] = []
    for stage in stages:
        on_step(stage.name)
        if isinstance(stage, Skipped):
            steps.append(_skip(stage.name, stage.reason, inputs))
            continue
        try:
            run = in_batches(stage.load())
        except MissingDependencyError as error:
            steps.append(_skip(stage.name, str(error), inputs))
            continue
        for name, images in sets.items():
            logits = run(images)
            references = [(REFERENCE, reference[name])]
            if name in before:
                references.append(before[name])
            steps.append(
                judge(
                    stage.name,
                    name,
                    logits,
                    references,
                    spread=spread,
                    limits=limits[stage.precision],
                )
            )
            before[name] = (stage.name, logits)
        del run
    manifest = network.artifact.manifest
    return Report(
        task=manifest.task,
        version=manifest.version,
        precision=precision,
        adapter_sha256=manifest.adapter.sha256,
        data=inputs.data,
        overflow=tuple(overflow),
        steps=tuple(steps),
    )


def _skip(stage: str, reason: str, inputs: ParityInputs) -> Step:
    return Step(stage=stage, inputs=inputs.data, n_images=0, outcome="skipped", reason=reason)
