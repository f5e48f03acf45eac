"""Image files as an ``ImageSet``, and the splits that are drawn from one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..wording import count_of
from .image_file import load_image
from .image_set import ImageSet, split_by_class


@dataclass(frozen=True, slots=True)
class _Files:
    """Reads images from files."""

    root: Path
    names: tuple[str, ...]

    def __call__(self, index: int) -> Image.Image:
        return load_image(self.root / self.names[index])


def file_images(root: Path, found: Sequence[tuple[str, int]]) -> ImageSet:
    """The images in files, by their names relative to ``root``, and their labels."""
    names = tuple(name for name, _ in found)
    labels = np.array([label for _, label in found], np.int64)
    return ImageSet(labels, names, _Files(root, names), root)


def draw_splits(
    spec: str, images: ImageSet, shares: Mapping[str, float], seed: int
) -> tuple[ImageSet, dict[str, ImageSet]]:
    """Set shares of the images aside, class by class: what is left, and each share by its name.

    An image that is listed more than once is drawn once, with all of its lines.

    Raises:
        DataError: If no class has enough images for one in every split.
    """
    places = images.places()
    first = {place: index for index, place in reversed([*enumerate(places)])}
    distinct = sorted(first.values())
    labels = images.labels[distinct]
    parts = split_by_class(labels, [*shares.values()], np.random.default_rng(seed))
    if len(images):
        for name, part in zip((*shares, "train"), parts, strict=True):
            if not len(part):
                raise DataError(f"{spec}: {_too_few(name, labels, shares)}")
    split_of = {places[distinct[i]]: number for number, part in enumerate(parts) for i in part}
    numbers = np.array([split_of[place] for place in places], np.int64)
    *drawn, rest = (
        images.select(np.flatnonzero(numbers == number)) for number in range(len(parts))
    )
    return rest, dict(zip(shares, drawn, strict=True))


def _too_few(split: str, labels: NDArray[np.int64], shares: Mapping[str, float]) -> str:
    drawn = " and ".join(f"{share:.4g} for {name}" for name, share in shares.items())
    places = ",".join(f"{name}={name.upper()}" for name in shares)
    return (
        f"there must be {split} images, got none: no class has more than "
        f"{count_of(int(np.bincount(labels).max()), 'image')} to draw from, {drawn}. Put at least "
        f"{_enough([*shares.values()]):,} in each, or say where such images are: --split "
        f"train=TRAIN,{places}"
    )


def _enough(shares: Sequence[float]) -> int:
    """From how many images of a class on every split gets one, as counts are rounded."""
    n = math.ceil(max(0.5 / min(shares), len(shares) / 2 / (1 - sum(shares))))
    while not all(counts := [round(share * n) for share in shares]) or sum(counts) >= n:
        n += 1  # a half is rounded to an even number
    return n


def reading_note(
    spec: str, n_classes: int, splits: Mapping[str, ImageSet], origins: Mapping[str, str]
) -> str:
    """One line on how a data set was read: classes, and each split's size and origin."""
    sizes = (
        f"{count_of(len(images), f'{name} image')} ({origins[name]})"
        for name, images in splits.items()
    )
    return f"{spec}: {count_of(n_classes, 'class')}, {', '.join(sizes)}"
