"""A task as lists of files, such as ``images/000001.jpg 7``, and VTAB-1K as NOAH lays it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..wording import count_of, printable, some_of
from .file_images import draw_splits, file_images, reading_note
from .image_set import ImageSet, TaskData
from .spec import VAL_SHARE, DataSpec, Splits
from .text_file import read_lines, read_names

_MAX_CLASSES = 100_000
"""A larger label in a list is taken for a slip, such as a line whose columns are swapped."""

_CLASSES_FILE = "classes.txt"

_VTAB_SPLITS = Splits(train="train800.txt", val="val200.txt", test="test.txt")

_VTAB_CLASSES = {
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


def load_lists(spec: str, data: DataSpec, seed: int) -> TaskData:
    """Read lists of files; each line is a file relative to PATH, a space and a label from 0.

    Raises:
        DataError: If a list is missing or malformed, or gives one image two labels.
    """
    root = data.root
    # VTAB's val200 is part of the data set: drawing another in its place would go unnoticed.
    splits = _VTAB_SPLITS if data.kind == "vtab" else data.splits or _usual_lists(spec, root)
    places = {"train": splits.train, "val": splits.val, "test": splits.test}
    _require_lists(spec, root, [place for place in places.values() if isinstance(place, str)])
    notes: list[str] = []
    parts = {
        name: _read_list(root, place, notes)
        for name, place in places.items()
        if isinstance(place, str)
    }
    shares = {name: share for name, share in places.items() if isinstance(share, float)}
    if shares:
        parts["train"], drawn = draw_splits(spec, parts["train"], shares, seed)
        parts |= drawn
    parts = {name: parts[name] for name in places}
    name = root.resolve().name
    classes = _classes(root, name, parts)
    origins = {
        name: f"drawn, {place:.0%}" if isinstance(place, float) else place
        for name, place in places.items()
    }
    return TaskData(
        name=name,
        spec=spec,
        seed=seed,
        classes=classes,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        published=data.kind == "vtab",
        notes=(reading_note(spec, len(classes), parts, origins), *notes),
    )


def _require_lists(spec: str, root: Path, names: Sequence[str]) -> None:
    """A list that is missing is named with those that are there."""
    missing = [name for name in names if not (root / name).exists()]
    if not missing:
        return
    there = sorted(path.name for path in root.glob("*.txt") if path.name != _CLASSES_FILE)
    fix = "" if there else f" If the images lie in one folder per class, try folder:{root}"
    raise DataError(
        f"{spec}: needs the lists {', '.join(map(printable, names))}, got no {some_of(missing)}: "
        f"{printable(str(root))} has {some_of(there, 5) or 'no list'}.{printable(fix)}"
    )


def _usual_lists(spec: str, root: Path) -> Splits:
    has_val = (root / "val.txt").exists()
    if not (root / "test.txt").exists() and (root / "train.txt").exists():
        have, test = ("train.txt and val.txt", "val.txt") if has_val else ("train.txt", VAL_SHARE)
        raise DataError(
            f"{spec}: there must be a list of test images, test.txt, got {have} alone. Say where "
            f"they come from: --split train=train.txt,val={VAL_SHARE},test={test}"
        )
    return Splits(train="train.txt", val="val.txt" if has_val else VAL_SHARE, test="test.txt")


def _read_list(root: Path, name: str, notes: list[str]) -> ImageSet:
    """Parse ``images/000001.jpg 7`` lines; blank lines are skipped."""
    path = root / name
    found, numbers = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        file, *label = line.strip().rsplit(maxsplit=1)
        if not label or not label[0].isdecimal() or int(label[0]) >= _MAX_CLASSES:
            raise DataError(
                f"{path}: line {number} must be 'FILE LABEL' with a label from 0 to "
                f"{_MAX_CLASSES - 1}, got {line!r}"
            )
        found.append((file, int(label[0])))
        numbers.append(number)
    images = file_images(root, found)
    first: dict[str, int] = {}
    for index, place in enumerate(images.places()):
        same = first.setdefault(place, index)
        if found[same][1] != found[index][1]:
            raise DataError(
                f"{path}: an image must have one label, got {found[same][1]} for "
                f"{printable(found[same][0])} in line {numbers[same]} and {found[index][1]} in "
                f"line {numbers[index]}"
            )
    if len(first) < len(found):
        again = count_of(len(found) - len(first), "line")
        notes.append(f"{path}: {again} with the image of an earlier one, which then counts again")
    return images


def _classes(root: Path, name: str, splits: Mapping[str, ImageSet]) -> tuple[str, ...]:
    """Class names from ``classes.txt``, else numbers: VTAB's known count, or up to the largest."""
    labels = [label for images in splits.values() for label in images.labels.tolist()]
    largest, smallest = max(labels, default=-1), min(labels, default=0)
    path = root / _CLASSES_FILE
    if not path.exists():
        return tuple(map(str, range(_VTAB_CLASSES.get(name, largest + 1))))
    names = read_names(path)
    if largest >= len(names):
        from_one = smallest == 1 and largest == len(names)
        reason = " Labels count from 0; these seem to count from 1." if from_one else ""
        raise DataError(
            f"{path}: must name each of the labels 0 to {largest}, one a line, got "
            f"{count_of(len(names), 'name')}.{reason}"
        )
    return names
