"""Labelled images and tasks made of three splits of them, wherever the images come from."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..wording import printable


@dataclass(frozen=True, eq=False, slots=True)
class ImageSet:
    """One split: images that are read when asked for, and their labels."""

    labels: NDArray[np.int64]
    """Class of each image, ``(n,)``."""
    ids: tuple[str, ...]
    """What identifies each image within its task: a relative path, an index, a place in a photo."""
    read: Callable[[int], Image.Image] = field(repr=False)
    """Reads the RGB image at an index."""
    root: Path | None = None
    """Where the images are files: the folder that their ids are relative to."""

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.ids),):
            raise ValueError(
                f"labels must have shape (n,)=({len(self.ids)},), got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """The RGB image at an index, at its own size.

        Raises:
            DataError: If its file is missing or damaged; the message names it.
        """
        return self.read(index)

    def path(self, index: int) -> Path | None:
        """The file of an image; None if it is none."""
        return None if self.root is None else self.root / self.ids[index]

    def places(self) -> list[str]:
        """One text per image, the same for two ids of one file, such as a/0.png and ./a//0.png."""
        if self.root is None:
            return list(self.ids)
        root = os.path.abspath(self.root)  # noqa: PTH100 (Path.absolute keeps a/../b)
        return [os.path.normpath(os.path.join(root, image_id)) for image_id in self.ids]  # noqa: PTH118 (a tenth of the time)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSet:
        """The images at these indices, in this order."""
        return ImageSet(
            self.labels[np.asarray(indices, np.int64)],
            tuple(self.ids[i] for i in indices),
            _Selection(self.read, tuple(int(i) for i in indices)),
            self.root,
        )

    def followed_by(self, other: ImageSet) -> ImageSet:
        """These images, then those of another set."""
        return ImageSet(
            np.concatenate([self.labels, other.labels]),
            self.ids + other.ids,
            _Chain(self, other),
            self.root if self.root == other.root else None,
        )


@dataclass(frozen=True, slots=True)
class _Selection:
    read: Callable[[int], Image.Image]
    indices: tuple[int, ...]

    def __call__(self, index: int) -> Image.Image:
        return self.read(self.indices[index])


@dataclass(frozen=True, slots=True)
class _Chain:
    first: ImageSet
    second: ImageSet

    def __call__(self, index: int) -> Image.Image:
        if index < len(self.first):
            return self.first.read(index)
        return self.second.read(index - len(self.first))


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """Reads images out of an array that holds them all."""

    pixels: NDArray[np.uint8]
    """``(n, h, w, 3)``."""

    def __call__(self, index: int) -> Image.Image:
        """The image at an index."""
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class TaskData:
    """A classification task: three splits that share no image, and the names of its classes."""

    name: str
    """Suggested task name, such as ``digits`` or the folder's name."""
    spec: str
    """The text the task was loaded by."""
    seed: int
    """What drew the splits that the data itself does not fix."""
    classes: tuple[str, ...]
    """Name of each label, in label order."""
    train: ImageSet
    """Trains the weights."""
    val: ImageSet
    """Chooses the subnet."""
    test: ImageSet
    """Read once, at the end."""
    published: bool = False
    """Whether the splits are those of a published benchmark, which is taken with its faults."""
    notes: tuple[str, ...] = ()
    """How it was read, and what was passed over: lines for the person who asked for it."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            names = f": {printable(self.classes[0])}" if self.classes else ""
            raise DataError(
                f"{self.spec}: a task must have at least 2 classes, got {len(self.classes)}{names}"
            )
        for split, images in self.splits():
            if not len(images):
                raise DataError(f"{self.spec}: there must be {split} images, got none")
            for image_id, label in zip(images.ids, images.labels.tolist(), strict=True):
                if not 0 <= label < len(self.classes):
                    raise DataError(
                        f"{self.spec}: labels must be 0 to {len(self.classes) - 1}, "
                        f"got {label} for {image_id} in {split}"
                    )
        places = {split: images.places() for split, images in self.splits()}
        for (split, images), (other, _) in combinations(self.splits(), 2):
            if shared := set(places[split]) & set(places[other]):
                named = [images.ids[places[split].index(place)] for place in shared]
                raise DataError(
                    f"{self.spec}: {split} and {other} must share no image, "
                    f"got {len(shared):,} in both, such as {printable(min(named))}. Take what they "
                    f"share out of one of the two."
                )

    def splits(self) -> tuple[tuple[str, ImageSet], ...]:
        """The three splits by name: train, val, test."""
        return ("train", self.train), ("val", self.val), ("test", self.test)

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def train_val(self) -> ImageSet:
        """Train then val, for the last training once the subnet is chosen."""
        return self.train.followed_by(self.val)

    def without(self, skipped: Mapping[str, Sequence[int]]) -> TaskData:
        """The same task, some images left out: places in each split, by the split's name.

        Raises:
            DataError: If a split or a place in it does not exist, or nothing is left of a split.
        """
        parts = dict(self.splits())
        for split, indices in skipped.items():
            if split not in parts or not all(0 <= i < len(parts[split]) for i in indices):
                raise DataError(f"{self.spec}: there is no such image in {split} to leave out")
            out = set(indices)
            parts[split] = parts[split].select(
                [i for i in range(len(parts[split])) if i not in out]
            )
        return replace(self, train=parts["train"], val=parts["val"], test=parts["test"])

    @property
    def splits_sha256(self) -> str:
        """Hash of who is in which split with which label, in order: one line per image.

        Files count by their relative paths, not their contents.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split, images in self.splits():
            for image_id, label in zip(images.ids, images.labels.tolist(), strict=True):
                digest.update(f"\n{split}\t{label}\t{image_id}".encode())
        return digest.hexdigest()


def split_by_class(
    labels: NDArray[np.int64], shares: Sequence[float], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Draw disjoint index sets that each hold their share of every class.

    Args:
        labels: Class of each sample, ``(n,)``.
        shares: Share of each drawn set, adding to at most 1; counts are rounded per class.
        rng: Drawn from once per class.

    Returns:
        One sorted index array per share, then one with the rest.
    """
    drawn: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label)).tolist()
        for part, share in zip(drawn, shares, strict=False):
            count = round(share * int(np.sum(labels == label)))
            part += members[:count]
            members = members[count:]
        drawn[-1] += members
    return [np.array(sorted(part), np.int64) for part in drawn]
