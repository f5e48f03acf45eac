"""The images to evaluate on, their labels put in the order of the network's outputs."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..data.built_in_tasks import BUILT_IN_TASKS
from ..data.check import skipped_images
from ..data.image_set import ImageSet, TaskData
from ..data.load import load_task
from ..errors import DataError
from ..store.manifest import Manifest
from ..wording import count_of, some_of
from .choices import Split

_SEEN: dict[Split, str] = {
    "train": "was trained on these images",
    "val": "was chosen by its accuracy on these images",
    "all": "was trained on some of these images",
}
"""What a training did with the splits that it did not keep for the end."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class LabelledImages:
    """Images of one data set, ready to be answered by networks that know their classes."""

    images: ImageSet
    """Their labels count the data set's own classes."""
    classes: tuple[str, ...]
    """The data set's own, in the order of its labels."""
    data: str
    """The text they were loaded by."""
    split: Split
    splits_sha256: str
    """Of the whole data set, as ``TaskData`` has it."""
    notes: tuple[str, ...] = ()
    """What whoever reads the figures should know of the data."""

    def targets(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Each image's class as a network counts them, ``(n,)``: matched by name.

        Args:
            labels: The network's classes, in the order of its outputs.

        Raises:
            DataError: If there are images of a class that the network does not know, or that it
                knows twice; lists these.
        """
        if tuple(labels) == self.classes:
            return self.images.labels
        wanted = [_nfc(name) for name in self.classes]
        places: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            places.setdefault(_nfc(label), []).append(index)
        counts = np.bincount(self.images.labels, minlength=len(wanted)).tolist()
        used = [index for index, count in enumerate(counts) if count]
        self._require([i for i in used if wanted[i] not in places], counts, labels)
        twice = [self.classes[i] for i in used if len(places[wanted[i]]) > 1]
        twice += [self.classes[i] for i in used if wanted.count(wanted[i]) > 1]
        if twice:
            raise DataError(
                f"{self.data}: a class must have a name of its own to be matched by it, got "
                f"{some_of(twice, 5)} more than once. Rename the copies."
            )
        # A class without any image here may be one that the network does not know.
        return np.array([places.get(name, [-1])[0] for name in wanted], np.int64)[
            self.images.labels
        ]

    def _require(self, unknown: list[int], counts: list[int], labels: Sequence[str]) -> None:
        if not unknown:
            return
        names = [f"{self.classes[i]} ({count_of(counts[i], 'image')})" for i in unknown]
        raise DataError(
            f"{self.data}: every class must be one that the network knows, got "
            f"{count_of(len(unknown), 'class')} that it does not: {some_of(names, 20)}. It knows "
            f"{some_of(labels, 20)}. Rename the folders, or the lines of classes.txt, or leave "
            "them out."
        )


def load_images(
    manifest: Manifest | None = None,
    *,
    data: str | None = None,
    split: Split = "test",
    seed: int | None = None,
) -> LabelledImages:
    """The images of one split, by default of the data that a version was trained on.

    Args:
        manifest: Of the version: names its data, and the seed that draws splits.
        data: Another data set, as training takes it; needed without a manifest.
        split: Which of its images.
        seed: Draws the splits; by default the version's, and 0 without one.

    Raises:
        DataError: If the data cannot be read, or nothing says where they are.
        MissingDependencyError: If a built-in task needs scikit-learn and it is not installed.
        ValueError: If there is no such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    spec = _recorded_spec(manifest) if data is None else data
    if seed is None:
        seed = (manifest.training.seed if manifest else None) or 0
    task, is_recorded = _as_recorded(_load(spec, seed), manifest)
    notes = task.notes
    if data is None and not is_recorded:
        notes += (
            f"{spec}: has changed since {_name(manifest)} was trained on it: other images, labels "
            "or splits. Some may have been trained on",
        )
    elif manifest and not is_recorded and spec == manifest.training.data:
        notes += (f"{spec}: is not what it was when {_name(manifest)} was trained on it",)
    if is_recorded and split in _SEEN:
        notes += (f"{_name(manifest)} {_SEEN[split]}: expect less on images that are new to it",)
    parts = dict(task.splits())
    images = reduce(ImageSet.followed_by, parts.values()) if split == "all" else parts[split]
    return LabelledImages(
        images=images,
        classes=task.classes,
        data=spec,
        split=split,
        splits_sha256=task.splits_sha256,
        notes=notes,
    )


def _load(spec: str, seed: int) -> TaskData:
    try:
        return load_task(spec, seed=seed)
    except DataError as error:
        if " --split " not in str(error):
            raise
        # Training takes the choice as an option of its own.
        raise DataError(
            f"{error} Here the choice is part of the data: --data '{spec.partition('?')[0]}"
            "?split=train=...,val=...,test=...'."
        ) from error


def _recorded_spec(manifest: Manifest | None) -> str:
    if manifest is None:
        raise DataError("data: must be given where no version says what it was trained on")
    spec = manifest.training.data
    if spec is None or (spec not in BUILT_IN_TASKS and ":" not in spec):  # pulled from elsewhere
        what = "names no data" if spec is None else f"does not say where its data ({spec}) lie"
        raise DataError(
            f"{_name(manifest)}: its manifest {what}. Give --data, such as --data folder:PATH."
        )
    return spec


def _as_recorded(task: TaskData, manifest: Manifest | None) -> tuple[TaskData, bool]:
    """The data without the images that a training left out, and whether it saw these data.

    Where they are others, the places of the images that it left out say nothing, and all are kept.
    """
    if manifest is None:
        return task, False
    stated = manifest.training.splits_sha256
    try:
        left = task.without(skipped_images(manifest.training.settings))
    except DataError:  # the data are shorter now
        return task, False
    return (left, True) if stated == left.splits_sha256 else (task, False)


def _name(manifest: Manifest | None) -> str:
    return "it" if manifest is None else f"{manifest.task}/{manifest.version}"


def _nfc(name: str) -> str:
    """The name with accents composed: a Mac writes them apart, most other systems do not."""
    return unicodedata.normalize("NFC", name)
