"""A report on one version of a task: what is known of it is put together, drawn and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import (
    ArtifactError,
    DataError,
    MissingDependencyError,
    NotInStoreError,
    StoreError,
)
from ..store.artifact import Artifact
from ..store.comparisons import comparisons
from ..store.cost_record import CostRecord
from ..store.history import History, read_history
from ..store.manifest import Manifest
from ..store.store import ArtifactStore
from .answers_section import answers_section
from .blocks import Figure, Gallery, Section
from .canvas import Drawing, require_matplotlib
from .embedding import require_scikit_learn
from .facts import about, facts, tiles
from .features_section import drawn_images, features_section, no_features
from .mistakes_section import mistakes_section
from .page import Page, render, require_jinja
from .report_folder import PAGE, require_replaceable, write_folder
from .search_section import search_section
from .subnet_section import subnet_section
from .training_section import training_section
from .versions_section import versions_section

if TYPE_CHECKING:
    from ..evaluation.choices import Device, Split
    from ..evaluation.evaluate_version import Evaluation

AS_SEARCHED = "as searched"
"""What a manifest's settings say of weights that later epochs made no better."""

OnStage = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReport:
    """What was written."""

    folder: Path
    page: Path
    """The HTML page in it."""
    left_out: tuple[tuple[str, str], ...]
    """Titles of sections that show nothing, and why."""


def write_report(
    task: str,
    version: str | None = None,
    *,
    store: Path | str = "artifacts",
    out: Path | str | None = None,
    data: str | None = None,
    split: Split = "test",
    skip_unreadable: bool = False,
    device: Device = "auto",
    report: OnStage = lambda stage, done, total: None,
) -> WrittenReport:
    """Write a page and the PNG of each of its figures into a folder.

    What is not at hand is left out, and the page says why: a history, the recorded data, the
    backbone.

    Args:
        task: Its name in the store.
        version: The current one by default.
        store: Folder of the store.
        out: The folder; ``TASK-VERSION-report`` by default. One that holds a report is replaced.
        data: As for ``evaluation.evaluate``; what is given must be readable.
        split: Which of its images.
        skip_unreadable: Leave images out that cannot be read.
        device: Where to compute.
        report: Told of the progress.

    Raises:
        StoreError: If store, task or version are not there, or the folder holds anything else.
        ArtifactError: If a file of the version is damaged.
        DataError: If data are given and cannot be read, or an image cannot be.
        MissingDependencyError: If a package of the extra ``report`` is not installed.
        OSError: If the folder cannot be written.
    """
    for require in (require_matplotlib, require_jinja, require_scikit_learn):
        require()
    opened = ArtifactStore.open(store)
    artifact = opened.get(task, version)
    name = f"{artifact.task}/{artifact.version}"
    folder = Path(out or f"{artifact.task}-{artifact.version}-report")
    require_replaceable(folder)
    history, no_history = _history(opened, artifact)
    evaluation, no_answers = None, ""
    try:
        evaluation = _evaluate(opened, artifact, data, split, skip_unreadable, device, report)
    except (DataError, MissingDependencyError, StoreError, OSError) as error:
        if data is not None:
            raise
        no_answers = str(error)
    settings = artifact.manifest.training.settings
    sections = (
        training_section(history, no_history, as_searched=settings.get("weights") == AS_SEARCHED),
        search_section(history, no_history),
        subnet_section(artifact.manifest),
        answers_section(evaluation, no_answers),
        mistakes_section(evaluation, no_answers),
        _features(opened, artifact, evaluation, no_answers, device, report),
        _versions(opened, artifact),
    )
    page = Page(
        title=name,
        about=about(artifact.manifest),
        tiles=tiles(artifact.manifest, evaluation),
        notes=_notes(evaluation),
        sections=sections,
        facts=facts(artifact.manifest, evaluation),
        release=__version__,
    )
    files = {PAGE: render(page).encode(), **_pngs(sections)}
    write_folder(folder, files, task=artifact.task, version=artifact.version)
    left_out = tuple((each.title, each.missing) for each in sections if each.missing)
    return WrittenReport(folder=folder, page=folder / PAGE, left_out=left_out)


def _history(store: ArtifactStore, artifact: Artifact) -> tuple[History | None, str]:
    """The history of a version, or why there is none."""
    try:
        found = read_history(store, artifact)
    except ArtifactError as error:
        return None, str(error)
    if found is not None:
        return found, ""
    if artifact.manifest.training.method == "imported":
        return None, "This delta was imported: how it was trained is not recorded."
    return None, "This version keeps no history; releases before histories wrote none."


def _evaluate(
    store: ArtifactStore,
    artifact: Artifact,
    data: str | None,
    split: Split,
    skip_unreadable: bool,
    device: Device,
    report: OnStage,
) -> Evaluation:
    from ..evaluation.evaluate_version import evaluate

    return evaluate(
        artifact.task,
        artifact.version,
        store=store.root,
        data=data,
        split=split,
        skip_unreadable=skip_unreadable,
        device=device,
        report=lambda done, total: report("answers", done, total),
    )


def _features(
    store: ArtifactStore,
    artifact: Artifact,
    evaluation: Evaluation | None,
    why_not: str,
    device: Device,
    report: OnStage,
) -> Section:
    if evaluation is None:
        return no_features(why_not)
    from .features import frozen_and_merged_features

    found = evaluation.predictions
    drawn = drawn_images(evaluation)
    frozen, merged = frozen_and_merged_features(
        store,
        artifact,
        found.images.select(drawn),
        device=device,
        report=lambda done, total: report("features", done, total),
    )
    return features_section(
        frozen, merged, found.targets[drawn], found.labels, n_images=len(found.targets)
    )


def _versions(store: ArtifactStore, artifact: Artifact) -> Section:
    manifests: list[Manifest] = []
    damaged: list[str] = []
    costs: dict[str, CostRecord] = {}
    for version in store.versions(artifact.task):
        try:
            found = store.get(artifact.task, version)
            manifests.append(found.manifest)
            history, _ = _history(store, found)
            if history is not None and history.cost is not None:
                costs[version] = history.cost
        except NotInStoreError:  # removed meanwhile
            continue
        except ArtifactError:
            damaged.append(version)
    try:
        current = store.current(artifact.task)
    except StoreError:  # it names no version: none answers
        current = None
    return versions_section(
        artifact.task,
        manifests,
        reported=artifact.version,
        current=current,
        damaged=damaged,
        costs=costs,
        others=[each for each in comparisons(store.root) if each.task == artifact.task],
    )


def _notes(evaluation: Evaluation | None) -> tuple[str, ...]:
    if evaluation is None:
        return ()
    notes = evaluation.notes
    recorded, measured = evaluation.recorded_accuracy, evaluation.metrics.accuracy
    if recorded is not None and recorded != measured:
        notes += (
            f"The training recorded {recorded:.2%} on these images, they are answered with "
            f"{measured:.2%} now: on another device a few answers may differ.",
        )
    return notes


def _pngs(sections: tuple[Section, ...]) -> dict[str, bytes]:
    drawings: list[Drawing] = []
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Figure):
            drawings += block.drawings
        elif isinstance(block, Gallery):
            drawings.append(block.sheet)
    return {f"{each.name}.png": each.png for each in drawings}
