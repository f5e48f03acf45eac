"""Load a task by a short text: a built-in name, a folder of images, or lists of files.

=================  ==============================================================================
``digits``, ...    a built-in task (``glora_deploy.demo_data``)
``folder:PATH``    ``PATH/{train,val,test}/CLASS/*.jpg``; without val, a fifth of train is drawn;
                   ``PATH/CLASS/*.jpg`` alone is split 60/20/20
``lists:PATH``     ``PATH/train.txt``, ``val.txt`` (else a fifth of train is drawn), ``test.txt``
``vtab:PATH``      VTAB-1K as NOAH lays it out: ``train800.txt``, ``val200.txt``, ``test.txt``
=================  ==============================================================================

A list line is a file relative to PATH, a space and a label from 0. ``PATH/classes.txt``, where it
exists, names the classes, one a line. Draws are stratified by class and fixed by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .demo_data import BUILT_IN_TASKS
from .errors import DataError
from .image_set import ImageSet, TaskData, split_by_class
from .preprocess import load_image

__all__ = ["ImageSet", "TaskData", "load_task"]

VAL_SHARE = 0.2
TEST_SHARE = 0.2

MAX_CLASSES = 100_000
"""A larger label in a list is taken for a slip, such as a line whose columns are swapped."""

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
)

VTAB_CLASSES = {
    "cifar": 100,
    "caltech101": 102,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn": 10,
    "sun397": 397,
    "patch_camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "diabetic_retinopathy": 5,
    "clevr_count": 8,
    "clevr_dist": 6,
    "dmlab": 6,
    "kitti": 4,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}
"""Classes of each VTAB-1K task by its folder's name; a task of 1,000 images may lack some."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Reads images from files."""

    root: Path
    names: tuple[str, ...]

    def __call__(self, index: int) -> Image.Image:
        return load_image(self.root / self.names[index])


def load_task(spec: str, *, seed: int) -> TaskData:
    """Load a task; images in files are read later, one by one.

    Args:
        spec: A built-in name, ``folder:PATH``, ``lists:PATH`` or ``vtab:PATH``.
        seed: Draws the built-in tasks, and the splits that a folder or list does not fix.

    Raises:
        DataError: If the text names nothing known, or the files are missing or malformed.
        MissingDependencyError: If a built-in task needs scikit-learn and it is not installed.
    """
    if spec in BUILT_IN_TASKS:
        return BUILT_IN_TASKS[spec](seed)
    kind, colon, path = spec.partition(":")
    root = Path(path).expanduser()
    if not colon or kind not in ("folder", "lists", "vtab"):
        raise DataError(
            f"data: a task must be one of {', '.join(BUILT_IN_TASKS)}, or folder:PATH, "
            f"lists:PATH or vtab:PATH, got {spec!r}"
        )
    if not path or not root.is_dir():
        raise DataError(f"{spec}: PATH must be a folder, got {str(root)!r}")
    if kind == "folder":
        return _load_folder(spec, root, seed)
    names = ("train.txt", "val.txt", "test.txt")
    if kind == "vtab":
        names = ("train800.txt", "val200.txt", "test.txt")
    return _load_lists(spec, root, names, seed)


def _load_folder(spec: str, root: Path, seed: int) -> TaskData:
    split_here = (root / "train").is_dir()
    folder = root / "train" if split_here else root
    classes = tuple(sorted(_subfolders(folder)))
    images = _read_class_folders(folder, root, classes)
    if not len(images):
        raise DataError(
            f"{spec}: {folder} must hold one folder of images per class, got no image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    if split_here:
        for other in ("val", "test"):
            if unknown := sorted(set(_subfolders(root / other)) - set(classes)):
                raise DataError(
                    f"{spec}: classes in {other} must also be in train, got {', '.join(unknown)}"
                )
        test = _read_class_folders(root / "test", root, classes)
        val = _read_class_folders(root / "val", root, classes)
        train, val = (images, val) if (root / "val").is_dir() else _draw_val(images, seed)
    else:
        rng = np.random.default_rng(seed)
        parts = split_by_class(images.labels, (VAL_SHARE, TEST_SHARE), rng)
        val, test, train = (images.select(part) for part in parts)
    return TaskData(
        name=root.resolve().name,
        spec=spec,
        seed=seed,
        classes=classes,
        train=train,
        val=val,
        test=test,
    )


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]


def _read_class_folders(folder: Path, root: Path, classes: Sequence[str]) -> ImageSet:
    """Every image file under ``folder/CLASS``; none if the folder is missing."""
    found = [
        (path.relative_to(root).as_posix(), label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    return _file_set(root, found)


def _file_set(root: Path, found: Sequence[tuple[str, int]]) -> ImageSet:
    names = tuple(name for name, _ in found)
    return ImageSet(np.array([label for _, label in found], np.int64), names, _Files(root, names))


def _draw_val(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Set a share of the training images aside: (train, val)."""
    val, train = split_by_class(images.labels, (VAL_SHARE,), np.random.default_rng(seed))
    return images.select(train), images.select(val)


def _load_lists(spec: str, root: Path, names: tuple[str, str, str], seed: int) -> TaskData:
    train_name, val_name, test_name = names
    train, test = _read_list(root, train_name), _read_list(root, test_name)
    # VTAB's val200 is part of the data set: drawing another in its place would go unnoticed.
    if val_name == "val.txt" and not (root / val_name).exists():
        train, val = _draw_val(train, seed)
    else:
        val = _read_list(root, val_name)
    name = root.resolve().name
    return TaskData(
        name=name,
        spec=spec,
        seed=seed,
        classes=_list_classes(root, name, [train.labels, val.labels, test.labels]),
        train=train,
        val=val,
        test=test,
    )


def _read_list(root: Path, name: str) -> ImageSet:
    """Parse ``images/000001.jpg 7`` lines; blank lines are skipped."""
    path = root / name
    found = []
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        file, *label = line.strip().rsplit(maxsplit=1)
        if not label or not label[0].isdecimal() or int(label[0]) >= MAX_CLASSES:
            raise DataError(
                f"{path}: line {number} must be 'FILE LABEL' with a label from 0 to "
                f"{MAX_CLASSES - 1}, got {line!r}"
            )
        found.append((file, int(label[0])))
    return _file_set(root, found)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: must be a readable UTF-8 text file: {error}") from error


def _list_classes(root: Path, name: str, labels: Sequence[NDArray[np.int64]]) -> tuple[str, ...]:
    """Class names from ``classes.txt``, else numbers: VTAB's known count, or up to the largest."""
    path = root / "classes.txt"
    if path.exists():
        return tuple(line.strip() for line in _read_lines(path) if line.strip())
    largest = max((int(part.max()) for part in labels if len(part)), default=-1)
    return tuple(map(str, range(VTAB_CLASSES.get(name, largest + 1))))
