"""Small image files and folders of them, each image with pixels of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, *, like: str | None = None) -> None:
    """A picture that depends on the text alone, by default the path: no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = hashlib.sha256((like or str(path)).encode("utf-8", "surrogateescape")).digest()
    pixels = np.random.default_rng(list(seed)).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(root: Path, counts: Mapping[str, int]) -> None:
    """So many images in the folder of each class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write_image(root / name / f"{i:02}.png")


def write_lists(root: Path, lists: Mapping[str, str]) -> None:
    """Lists as they are given, and every image in them."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (root / name).write_text(text, "utf-8")
        for line in filter(str.strip, text.splitlines() if name != "classes.txt" else ()):
            write_image(root / line.rsplit(maxsplit=1)[0])
