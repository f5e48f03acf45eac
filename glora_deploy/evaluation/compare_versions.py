"""Versions side by side: what is recorded, what differs, and who is better on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import (
    ArtifactError,
    DataError,
    GloraDeployError,
    MissingDependencyError,
    StoreError,
)
from ..store.artifact import Artifact
from ..store.comparisons import ComparisonRecord, comparisons, read_comparison
from ..store.cost_record import CostRecord
from ..store.history import read_history
from ..store.manifest import Manifest
from ..store.reader import StoreReader, require_slug
from ..store.store import ArtifactStore
from .choices import Split
from .differences import Difference, differences
from .evaluate_version import Evaluation, OpenNetwork, evaluate_on, open_delta
from .labelled_images import LabelledImages, load_images
from .mcnemar import McNemar, mcnemar
from .predictions import BATCH_SIZE

OnStage = Callable[[str, int, int], None]
"""Told the version that is measured, and how many images of how many are done."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ComparedVersion:
    """One version: what its manifest records, and what was measured now."""

    manifest: Manifest
    is_current: bool
    evaluation: Evaluation | None
    """On the images of the comparison; None if it was not measured."""
    cost: CostRecord | None
    """Of its training; None if it is not recorded."""
    against_first: McNemar | None
    """The first version as the first, this one as the second; None for the first itself, and where
    one of the two was not measured."""
    notes: tuple[str, ...]
    """Why it was not measured, and what else to know of its figures."""

    @property
    def name(self) -> str:
        """``task/version``."""
        return f"{self.manifest.task}/{self.manifest.version}"

    @property
    def seconds(self) -> float | None:
        """Of training and search; None if it is not recorded."""
        training = self.manifest.training
        search = training.settings.get("search_seconds")
        if training.seconds is None:
            return None
        return training.seconds + (search if isinstance(search, int | float) else 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        manifest, training = self.manifest, self.manifest.training
        return {
            "task": manifest.task,
            "version": manifest.version,
            "is_current": self.is_current,
            "created": manifest.created,
            "method": training.method,
            "val_accuracy": training.val_accuracy,
            "test_accuracy": training.test_accuracy,
            "n_parameters": manifest.n_parameters,
            "n_head_parameters": manifest.n_head_parameters,
            "size_bytes": manifest.adapter.size_bytes,
            "seconds": self.seconds,
            "cost": _fields(self.cost),
            "measured": None if self.evaluation is None else _measured(self.evaluation),
            "against_first": None if self.against_first is None else self.against_first.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Comparison:
    """Two or more trainings; the first version is what the others are compared with."""

    versions: tuple[ComparedVersion, ...]
    others: tuple[ComparisonRecord, ...]
    """Trainings that left no version; of them only what is recorded can be told."""
    differences: tuple[Difference, ...]
    """What is not the same for all, each with one value for each version."""
    data: str | None
    """What the images were loaded by; None if nothing was measured."""
    split: Split
    notes: tuple[str, ...]
    """What whoever reads the figures should know."""

    @property
    def names(self) -> tuple[str, ...]:
        """``task/version`` of the versions, then of the others."""
        others = (f"{each.task}/{each.name}" for each in self.others)
        return (*(each.name for each in self.versions), *others)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "versions": [each.to_dict() for each in self.versions],
            "comparisons": [each.model_dump(mode="json") for each in self.others],
            "differences": [
                {
                    "what": each.what,
                    "values": dict(zip(self.names, each.values, strict=True)),
                }
                for each in self.differences
            ],
            "data": self.data,
            "split": self.split,
            "notes": list(self.notes),
        }


def compare(
    names: Sequence[str],
    *,
    store: Path | str = "artifacts",
    open_network: OpenNetwork | None = None,
    measure: bool = True,
    data: str | None = None,
    split: Split = "test",
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
    report: OnStage = lambda name, done, total: None,
) -> Comparison:
    """Compare versions by what is recorded, and by their answers to the same images.

    Args:
        names: ``task/version``, or ``task`` for all of its versions, the current one first, and
            for what was trained for comparison alone. The first version that they name is what the
            others are compared with.
        store: Folder of the store.
        open_network: What answers for a version; by default its delta, merged with torch.
        measure: Let the versions answer; without, only what is recorded is compared.
        data: As for ``evaluate``; by default the data of the first version. Where those are not at
            hand, nothing is measured and a note says why.
        split: Of these data.
        batch_size: Images computed at once.
        skip_unreadable: Leave images out that cannot be read.
        report: Told the version that is measured, and how many images of how many are done.

    Raises:
        StoreError: If a store, task or version is not there.
        DataError: If ``data`` are given and cannot be read, or an image cannot be read.
        GloraDeployError: If a version that was to be measured cannot be opened.
        ValueError: If the names are those of fewer than two trainings, or a name is malformed.
    """
    opened = ArtifactStore.open(store)
    versions, others = _named(opened, names)
    artifacts = [opened.get(*name) for name in versions]
    images: LabelledImages | None = None
    notes: tuple[str, ...] = ()
    if measure and artifacts:
        try:
            images = load_images(artifacts[0].manifest, data=data, split=split)
            notes = images.notes
        except (DataError, MissingDependencyError, OSError) as error:
            if data is not None:
                raise
            notes = (f"nothing was measured: {error}",)
    results = [
        _measure(
            opened, each, images, open_network or open_delta, batch_size, skip_unreadable, report
        )
        for each in artifacts
    ]
    current = {artifact.task: _current(opened, artifact.task) for artifact in artifacts}
    return Comparison(
        versions=tuple(
            ComparedVersion(
                manifest=artifact.manifest,
                is_current=artifact.version == current[artifact.task],
                evaluation=evaluation,
                cost=cost,
                against_first=None if index == 0 else _against(results[0][0], evaluation),
                notes=(*said, *damage),
            )
            for index, (artifact, (evaluation, said), (cost, damage)) in enumerate(
                zip(artifacts, results, [_cost(opened, each) for each in artifacts], strict=True)
            )
        ),
        others=others,
        differences=differences([artifact.manifest for artifact in artifacts], others),
        data=None if images is None else images.data,
        split=split,
        notes=(*notes, *_notes_on(others, artifacts, images)),
    )


def _notes_on(
    others: Sequence[ComparisonRecord], artifacts: Sequence[Artifact], images: LabelledImages | None
) -> list[str]:
    """What keeps the recorded figures of comparisons from being compared."""
    of_versions = {artifact.manifest.training.data for artifact in artifacts}
    shown = {images.data} if images is not None else of_versions
    return [
        f"{each.task}/{each.name}: its accuracies are those on {each.data}"
        for each in others
        if shown and each.data not in shown
    ]


def _cost(store: StoreReader, artifact: Artifact) -> tuple[CostRecord | None, tuple[str, ...]]:
    """What the training took, and what to know if that cannot be told."""
    try:
        history = read_history(store, artifact)
    except (ArtifactError, StoreError) as error:
        return None, (f"what it took is not known: {error}",)
    return None if history is None else history.cost, ()


def _named(
    store: StoreReader, names: Sequence[str]
) -> tuple[list[tuple[str, str]], tuple[ComparisonRecord, ...]]:
    """Task and version of each version that is named, each once; and what has no version."""
    found: dict[tuple[str, str], None] = {}
    others: dict[tuple[str, str], ComparisonRecord] = {}
    for name in names:
        task, slash, version = name.partition("/")
        require_slug("task", task)
        if slash:
            require_slug("version", version)
            kept = read_comparison(store.root, task, version)
            if kept is not None and version not in store.version_names(task):
                others[task, version] = kept
            else:
                found[task, version] = None
            continue
        kept_of_task = {(task, k.name): k for k in comparisons(store.root) if k.task == task}
        others |= kept_of_task
        if kept_of_task and task not in store.tasks():
            continue
        current = _current(store, task)
        versions = store.versions(task)
        versions.sort(key=lambda each: each != current)  # the order of time but for this
        found |= {(task, each): None for each in versions}
    if len(found) + len(others) < 2:
        there = ", ".join(f"{task}/{version}" for task, version in (*found, *others)) or "none"
        raise ValueError(
            f"there must be two versions at least to compare, got {there}. Name another, as "
            "TASK/VERSION."
        )
    return [*found], tuple(others.values())


def _current(store: StoreReader, task: str) -> str | None:
    try:
        return store.current(task)
    except StoreError:  # damaged: the versions can be compared all the same
        store.require_task(task)
        return None


def _measure(
    store: StoreReader,
    artifact: Artifact,
    images: LabelledImages | None,
    open_network: OpenNetwork,
    batch_size: int,
    skip_unreadable: bool,
    report: OnStage,
) -> tuple[Evaluation | None, tuple[str, ...]]:
    """A version's answers; None with the reason if it cannot answer for these images."""
    if images is None:
        return None, ()
    manifest = artifact.manifest
    name = f"{artifact.task}/{artifact.version}"
    try:
        images.targets(manifest.labels)
    except DataError as error:
        return None, (f"not measured: {error}",)
    notes: tuple[str, ...] = ()
    if manifest.training.splits_sha256 not in (None, images.splits_sha256):
        notes += (
            "was trained on other data or splits, so it may have been trained on some of these "
            "images",
        )
    if set(manifest.labels) > set(images.classes):
        n = len(set(manifest.labels) - set(images.classes))
        notes += (f"can also answer with {n} classes that these images are not of",)
    network, called = open_network(store, artifact)
    evaluation = evaluate_on(
        network,
        images,
        name=called,
        manifest=manifest,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        report=lambda done, total: report(name, done, total),
    )
    return evaluation, notes


def _against(first: Evaluation | None, second: Evaluation | None) -> McNemar | None:
    if first is None or second is None:
        return None
    if first.predictions.images.ids != second.predictions.images.ids:
        # What cannot be read is the same for all, unless the files changed meanwhile.
        raise GloraDeployError(f"{first.data}: the images have changed meanwhile. Start again.")
    return mcnemar(first.predictions.correct, second.predictions.correct)


def _fields(cost: CostRecord | None) -> dict[str, Any] | None:
    return None if cost is None else cost.model_dump(mode="json")


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    metrics = evaluation.metrics
    return {
        "network": evaluation.network,
        "precision": evaluation.precision,
        "n_images": metrics.n_images,
        "accuracy": metrics.accuracy,
        "interval": list(metrics.interval),
        "balanced_accuracy": metrics.balanced_accuracy,
        "seconds": evaluation.seconds,
        "skipped": list(evaluation.predictions.skipped),
    }
