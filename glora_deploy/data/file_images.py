"""Image files as an ``ImageSet``, and the splits that are drawn from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

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
    images: ImageSet, shares: Mapping[str, float], seed: int
) -> tuple[ImageSet, dict[str, ImageSet]]:
    """Set shares of the images aside, class by class: what is left, and each share by its name."""
    *drawn, rest = split_by_class(images.labels, [*shares.values()], np.random.default_rng(seed))
    parts = zip(shares, drawn, strict=True)
    return images.select(rest), {name: images.select(part) for name, part in parts}


def reading_note(
    spec: str, n_classes: int, splits: Mapping[str, ImageSet], origins: Mapping[str, str]
) -> str:
    """One line on how a data set was read: classes, and each split's size and origin."""
    sizes = (
        f"{count_of(len(images), f'{name} image')} ({origins[name]})"
        for name, images in splits.items()
    )
    return f"{spec}: {count_of(n_classes, 'class')}, {', '.join(sizes)}"
