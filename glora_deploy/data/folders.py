"""A task as folders of images: one per class, and above these one per split if there are any."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ..errors import DataError
from ..wording import count_of, printable, some_of
from .file_images import draw_splits, file_images, reading_note
from .image_folder import (
    find_images,
    folders_with_images,
    loose_images,
    require_text,
    visible_folders,
)
from .image_set import ImageSet, TaskData
from .spec import TEST_SHARE, VAL_SHARE, DataSpec, Splits

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the folder of each split may be called, in any case."""

_CAMERA_SUFFIXES = (".heic", ".heif")
_CONVERT_HEIC = (
    "HEIC is not read, convert it, for instance with ImageMagick: magick mogrify -format jpg "
    "FOLDER/*.heic"
)

MAX_WRAPPINGS = 8
"""How many folders around the data are looked through for a hint."""


def load_folder(spec: str, data: DataSpec, seed: int) -> TaskData:
    """Read a folder of images.

    Raises:
        DataError: If its layout is not clear, or it holds too little.
    """
    root = data.root
    splits = data.splits or _recognise(spec, root)
    places = {"train": splits.train, "val": splits.val, "test": splits.test}
    folders = [place for place in places.values() if isinstance(place, str)]
    for folder in folders:
        if not (root / folder).is_dir():
            there = some_of(visible_folders(root), 5) or "no folder"
            raise DataError(
                f"{spec}: split: {printable(folder)} must be a folder in {root}, which has {there}"
            )
    classes = _class_folders(spec, root, folders)
    if len(classes) == 1 and folders_with_images(root / splits.train):
        _refuse_single_class(spec, root, places, classes[0])
    reader = _Reader(spec, root, classes)
    parts = {
        name: reader.read(folder, name)
        for name, folder in places.items()
        if isinstance(folder, str)
    }
    shares = {name: share for name, share in places.items() if isinstance(share, float)}
    if not len(parts["train"]):
        raise DataError(
            f"{spec}: {root / splits.train} must hold one folder of images per class, got no image "
            f"in such a folder{reader.skipped_note()}"
        )
    if shares:
        parts["train"], drawn = draw_splits(spec, parts["train"], shares, seed)
        parts |= drawn
    parts = {name: parts[name] for name in places}
    origins = {
        name: f"drawn, {place:.0%}" if isinstance(place, float) else _shown(place)
        for name, place in places.items()
    }
    note = reading_note(spec, len(reader.classes), parts, origins)
    used = {folder.split("/")[0] for folder in folders}
    if "." not in used and (unread := [n for n in visible_folders(root) if n not in used]):
        note += f"; not read: {some_of([_shown(name) for name in unread])}"
    return TaskData(
        name=root.resolve().name,
        spec=spec,
        seed=seed,
        classes=tuple(reader.classes),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        notes=(note + reader.skipped_note(),),
    )


def _shown(place: str) -> str:
    return "PATH itself" if place == "." else f"{printable(place)}/"


def _refuse_single_class(
    spec: str, root: Path, places: Mapping[str, str | float], name: str
) -> NoReturn:
    """Mostly the classes lie deeper, as archives are unpacked into a folder of their own."""
    train = str(places["train"])
    got = f"{spec}: a task must have at least 2 classes, got 1: {printable(name)}"
    within = _within(root / train)
    if within is None:
        raise DataError(
            f"{got}. {printable(str(root / train))} must hold one folder of images per class."
        )
    if train == ".":
        raise DataError(f"{got}. The classes seem to lie deeper: give {_folder_spec(root, within)}")
    deeper = {
        split: (Path(place) / within).as_posix() if isinstance(place, str) else place
        for split, place in places.items()
    }
    if all((root / place).is_dir() for place in deeper.values() if isinstance(place, str)):
        offer = ",".join(f"{split}={place}" for split, place in deeper.items())
        raise DataError(
            f"{got}. The classes seem to lie deeper: --split {shlex.quote(printable(offer))}"
        )
    raise DataError(
        f"{got}. The classes seem to lie deeper, in {printable(str(root / train / within))}: move "
        f"them up to {printable(str(root / train))}."
    )


def _within(folder: Path) -> Path | None:
    """The nearest folder below, relative, that holds splits or two classes; None if none does.

    Only folders that hold all of the images are looked into.
    """
    within = Path()
    for _ in range(MAX_WRAPPINGS):
        names = folders_with_images(folder / within)
        if len(names) > 1 or any(map(_split_of, names)):
            return within if within.parts else None
        if not names:
            return None
        within /= names[0]
    return None


def _folder_spec(root: Path, within: Path) -> str:
    return shlex.quote(f"folder:{printable(str(root / within))}")


def _recognise(spec: str, root: Path) -> Splits:
    """The splits that the names of the folders say, or the line that tells what is missing."""
    folders = visible_folders(root)
    named = {
        split: [name for name in folders if _split_of(name) == split] for split in _SPLIT_NAMES
    }
    others = [name for name in folders if _split_of(name) is None]
    if not any(named.values()):
        _require_no_splits_within(spec, root, folders)
        return Splits(train=".", val=VAL_SHARE, test=TEST_SHARE)
    for split, found in named.items():
        if len(found) > 1:
            raise DataError(
                f"{spec}: {split} must be one folder, got {' and '.join(found)}. Rename one, or "
                f"say which is which: {_offer(named)}"
            )
    if others and not (named["train"] and named["test"]):
        split_like = [name for found in named.values() for name in found]
        as_classes = f"--split train=.,val={VAL_SHARE},test={TEST_SHARE}"
        splits = ""
        if named["train"] and len(folders_with_images(root / named["train"][0])) > 1:
            splits = f"; as a split: {_offer(named)}"
        raise DataError(
            f"{spec}: {some_of(split_like)} beside {some_of(others)} must be clear: the first is "
            f"the name of a split, but the folder has no train and test that go with it. If every "
            f"folder is a class: {as_classes}{splits}"
        )
    if not named["train"]:
        best = (named["val"] or named["test"])[0]
        raise DataError(
            f"{spec}: there must be train images, got only {some_of(folders)}. Add a folder train, "
            f"or say which of these trains: --split train={shlex.quote(printable(best))},"
            f"val={VAL_SHARE},test={TEST_SHARE}"
        )
    if not named["test"]:
        have = " and ".join(f"{name}/" for name in folders)
        raise DataError(
            f"{spec}: there must be test images, got none: the folder has {have} alone. Say where "
            f"they come from: {_offer(named)}"
        )
    (train,), (test,) = named["train"], named["test"]
    return Splits(train=train, val=named["val"][0] if named["val"] else VAL_SHARE, test=test)


def _require_no_splits_within(spec: str, root: Path, folders: Sequence[str]) -> None:
    """Splits below each class would be mixed and drawn again without a word."""
    if len(folders) == 1:
        return  # no class, but a folder around the data, which is refused with its name
    for name in folders:
        below = [folder for folder in visible_folders(root / name) if _split_of(folder)]
        if len({_split_of(folder) for folder in below}) > 1:
            if (within := _within(root)) is not None:
                raise DataError(
                    f"{spec}: PATH must hold the splits or the classes, got {some_of(folders)}, of "
                    f"which {printable(name)}/ alone holds images, with {some_of(below)} in it. "
                    f"Give {_folder_spec(root, within)}"
                )
            raise DataError(
                f"{spec}: splits must be above the classes, such as {below[0]}/{printable(name)}, "
                f"got {printable(name)}/ with {some_of(below)} in it. Move them, or have all "
                f"images split anew: --split train=.,val={VAL_SHARE},test={TEST_SHARE}"
            )


def _split_of(folder: str) -> str | None:
    """The split that a folder's name says."""
    name = folder.casefold()
    return next((split for split, names in _SPLIT_NAMES.items() if name in names), None)


def _offer(named: Mapping[str, Sequence[str]]) -> str:
    """A ``--split`` that reads these folders; without a test folder, val's images test."""
    train = named["train"][0] if named["train"] else "."
    val, test = named["val"], named["test"]
    if test:
        return f"--split train={train},val={val[0] if val else VAL_SHARE},test={test[0]}"
    return f"--split train={train},val={VAL_SHARE},test={val[0] if val else TEST_SHARE}"


def _class_folders(spec: str, root: Path, folders: Sequence[str]) -> list[str]:
    """The classes in label order, as the folders of train, the first of ``folders``, are named."""
    train, *others = folders
    names = visible_folders(root / train)
    require_text(root / train, names)
    if train == ".":
        names = [name for name in names if name not in {place.split("/")[0] for place in others}]
    by_nfc: dict[str, str] = {}
    for name in names:
        if (same := by_nfc.setdefault(_nfc(name), name)) != name:
            raise DataError(
                f"{spec}: two folders must not spell one name, got {same!a} and {name!a}, which "
                "look alike. Put their images into one."
            )
    return names


def _nfc(name: str) -> str:
    """The name with accents composed: a Mac writes them apart, most other systems do not."""
    return unicodedata.normalize("NFC", name)


@dataclass(slots=True)
class _Reader:
    """Reads the class folders of one split after the other."""

    spec: str
    root: Path
    classes: list[str]
    skipped: list[str] = field(default_factory=list)

    def read(self, place: str, split: str) -> ImageSet:
        """Every image under ``root/place/CLASS``, class by class."""
        folders = {_nfc(name): name for name in visible_folders(self.root / place)}
        labels = {_nfc(name): label for label, name in enumerate(self.classes)}
        if place != "." and (unknown := [folders[name] for name in folders.keys() - labels.keys()]):
            raise DataError(
                f"{self.spec}: classes in {split} must also be in train, got "
                f"{some_of(sorted(unknown))}"
            )
        self.skipped += loose_images(self.root, place)
        images = []
        for name, label in labels.items():
            if name in folders:
                found = find_images(self.root, (Path(place) / folders[name]).as_posix())
                images += [(path, label) for path in found.images]
                self.skipped += found.skipped
        return file_images(self.root, images)

    def skipped_note(self) -> str:
        if not self.skipped:
            return ""
        note = f"; skipped {count_of(len(self.skipped), 'file')}: {some_of(self.skipped)}"
        if any(name.lower().endswith(_CAMERA_SUFFIXES) for name in self.skipped):
            note += f"; {_CONVERT_HEIC}"
        return note
