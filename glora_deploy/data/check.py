"""What is wrong with a task's images, all of it at once, before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..wording import count_of, printable, some_of
from .image_file import decode_image
from .image_set import ImageSet, TaskData

SKIPPED_IMAGES = "skipped_images"
"""Under this key of a manifest's training settings: the places of the images left out."""

MAX_SKIPPED = 1000
"""More unreadable images than this are no slip, and a manifest is no place to list them."""

_NEARLY_BLACK = 15
"""Highest value, of 255, of an image that a person sees as black; 12 bits in 16 end here."""

READ_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedData:
    """A task whose every image was decoded once."""

    data: TaskData
    """Without the images that were to be skipped."""
    skipped: dict[str, list[int]]
    """Places of these, as ``load_task`` takes them: by the split they were in."""
    notes: tuple[str, ...]
    """What is worth knowing and refused by nobody: lines for a person."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one image was found to be."""

    pixels: bytes
    """Digest of its size and RGB pixels: the same for two files that hold one picture."""
    brightest: int
    """Of all channels, 0 to 255."""
    sixteen_bit: bool
    transparent: bool


@dataclass(slots=True)
class _Survey:
    """What every image of a task was found to be."""

    seen: dict[str, list[_Seen | None]] = field(default_factory=lambda: defaultdict(list))
    """By split, in order; None for an image that cannot be read."""
    broken: list[tuple[str, DataError]] = field(default_factory=list)
    """Id and reason of each unreadable image."""


def check_data(
    data: TaskData,
    *,
    skip_unreadable: bool = False,
    allow_duplicates: bool = False,
    allow_empty_classes: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> CheckedData:
    """Decode every image that is a file, and refuse what would spoil a training or its figures.

    Nothing of the images is kept; in particular nobody learns from those of the test split.
    A published benchmark is taken as it is: what else is refused becomes a note.

    Args:
        data: The task.
        skip_unreadable: Leave images out that cannot be read, instead of refusing them.
        allow_duplicates: Allow one picture in two splits.
        allow_empty_classes: Allow classes without a training image.
        report: Told how many images of how many have been decoded.

    Raises:
        DataError: If images cannot be read, a class has no training image, or a picture of one
            split is also in another; counts them and names the first.
    """
    survey = _survey(data, report)
    skipped = _skipped(data, survey, skip_unreadable=skip_unreadable)
    notes = []
    if skipped:
        names = [name for name, _ in survey.broken]
        notes.append(f"left out {count_of(len(names), 'unreadable image')}: {some_of(names)}")
        data = data.without(skipped)
    seen = {name: [each for each in found if each] for name, found in survey.seen.items()}
    for problem, allowed in (
        (_empty_classes(data), allow_empty_classes),
        (_shared_pictures(data, seen), allow_duplicates),
    ):
        if problem and not (allowed or data.published):
            raise DataError(f"{data.spec}: {problem[0]}. {problem[1]}")
        notes += [f"allowed, although {text}" for text in problem[:1]]
    notes += [*_copies(data, seen), *_pixel_notes(data, seen)]
    return CheckedData(data=data, skipped=skipped, notes=tuple(notes))


def skipped_images(settings: Mapping[str, object]) -> dict[str, list[int]]:
    """What a training left out, as its manifest's settings keep it; nothing by default.

    Raises:
        DataError: If it is not what a training writes.
    """
    found = settings.get(SKIPPED_IMAGES, {})
    if isinstance(found, dict) and all(
        isinstance(places, list) and all(type(place) is int for place in places)
        for places in found.values()
    ):
        return found
    raise DataError(f"{SKIPPED_IMAGES}: must be places by the name of the split, got {found!r}")


def _survey(data: TaskData, report: Callable[[int, int], None]) -> _Survey:
    survey = _Survey()
    files = [(name, images) for name, images in data.splits() if images.root is not None]
    total = sum(len(images) for _, images in files)
    done = 0
    with ThreadPoolExecutor() as pool:  # Pillow decodes and hashlib hashes without the GIL
        for split, images in files:
            for some in _slices(len(images), READ_AT_ONCE):
                paths = [path for i in some if (path := images.path(i)) is not None]
                for index, found in zip(some, pool.map(_look_at, paths), strict=True):
                    if isinstance(found, DataError):
                        survey.broken.append((images.ids[index], found))
                    survey.seen[split].append(found if isinstance(found, _Seen) else None)
                done += len(some)
                report(done, total)
    return survey


def _look_at(path: Path) -> _Seen | DataError:
    try:
        decoded = decode_image(path)
    except DataError as error:
        return error
    pixels = np.ascontiguousarray(decoded.image)
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    brightest = int(pixels.max(initial=0))
    return _Seen(digest.digest(), brightest, decoded.sixteen_bit, decoded.transparent)


def _slices(n: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def _skipped(data: TaskData, survey: _Survey, *, skip_unreadable: bool) -> dict[str, list[int]]:
    """Places of the unreadable images, if they may be skipped."""
    if not survey.broken:
        return {}
    n = len(survey.broken)
    if skip_unreadable and n <= MAX_SKIPPED:
        places = {
            split: [i for i, each in enumerate(found) if each is None]
            for split, found in survey.seen.items()
        }
        return {split: indices for split, indices in places.items() if indices}
    total = sum(map(len, survey.seen.values()))
    others = [name for name, _ in survey.broken[1:]]
    also = f"; also {some_of(others, 5)}" if others else ""
    way_out = (
        f"At most {MAX_SKIPPED:,} can be left out"
        if skip_unreadable
        else "Mend or remove them, or leave them out with --skip-unreadable"
    )
    reason = printable(str(survey.broken[0][1])).rstrip(".")  # it goes on in this sentence
    raise DataError(
        f"{data.spec}: every image must be readable, got {n:,} of {total:,} that are not: "
        f"{reason}{also}. {way_out}."
    )


def _empty_classes(data: TaskData) -> tuple[str, ...]:
    """What is wrong and the way out; nothing where every class can be learned."""
    counts = np.bincount(data.train.labels, minlength=data.n_classes)
    empty = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if not empty:
        return ()
    anywhere = {label for _, images in data.splits() for label in images.labels.tolist()}
    if data.classes[0] == "0" and 0 not in anywhere:
        return (
            "labels must count from 0, got no image with label 0: these seem to count from 1",
            "Subtract 1 from each, or give --allow-empty-classes if class 0 is to stay empty.",
        )
    fix = "Add images, remove the class, or give --allow-empty-classes."
    if len(empty) == data.n_classes - 1:
        only = printable(data.classes[int(counts.argmax())])
        fix = f"Only {only} has any; a task needs 2 classes that have. {fix}"
    return (
        f"every class must have training images, got none for {count_of(len(empty), 'class')} "
        f"of {data.n_classes:,}: {some_of(empty, 5)}",
        fix,
    )


def _shared_pictures(data: TaskData, seen: Mapping[str, list[_Seen]]) -> tuple[str, ...]:
    """What is wrong and the way out; nothing where the splits share no picture."""
    parts = dict(data.splits())
    problems = []
    for split, other in combinations(seen, 2):
        first = {each.pixels: i for i, each in reversed([*enumerate(seen[split])])}
        twins = [
            (parts[other].ids[i], parts[split].ids[first[each.pixels]])
            for i, each in enumerate(seen[other])
            if each.pixels in first
        ]
        if twins:
            pairs = [f"{name} = {twin}" for name, twin in twins]
            n = count_of(len(twins), f"{other} image")
            problems.append(f"{n} that {split} has too: {some_of(pairs)}")
    if not problems:
        return ()
    return (
        f"the splits must share no picture, got {'; '.join(problems)}",
        "What was trained on cannot test. Remove the copies, or give --allow-duplicates.",
    )


def _copies(data: TaskData, seen: Mapping[str, list[_Seen]]) -> Iterator[str]:
    """Pictures that one split holds more than once."""
    parts = dict(data.splits())
    for split, images in seen.items():
        same: dict[bytes, list[int]] = defaultdict(list)
        for index, each in enumerate(images):
            same[each.pixels].append(index)
        copies = [indices for indices in same.values() if len(indices) > 1]
        if not copies:
            continue
        yield _copies_note(split, parts[split], copies)


def _copies_note(split: str, images: ImageSet, copies: list[list[int]]) -> str:
    n = sum(len(indices) - 1 for indices in copies)
    at_odds = [some for some in copies if len({int(images.labels[i]) for i in some}) > 1]
    shown = (at_odds or copies)[0]
    pair = " = ".join(printable(images.ids[i]) for i in shown[:2])
    odds = f", {len(at_odds):,} of them under two classes" if at_odds else ""
    return f"{split} repeats {count_of(n, 'picture')}{odds}, such as {pair}"


def _pixel_notes(data: TaskData, seen: Mapping[str, list[_Seen]]) -> Iterator[str]:
    """What the pixels look like, where it may not be what was meant."""
    every = [
        (image_id, each)
        for split, images in data.splits()
        if split in seen
        for image_id, each in zip(images.ids, seen[split], strict=True)
    ]
    deep = [name for name, each in every if each.sixteen_bit]
    highest = max((each.brightest for _, each in every if each.sixteen_bit), default=255)
    if highest < 128:
        bits = 8 + highest.bit_length()
        yield (
            f"dark, with no value above {256 * highest + 255:,} of 65,535: all of "
            f"{count_of(len(deep), '16-bit image')}: {some_of(deep)}. If {bits} bits are their "
            f"whole range, save them with their values times {2 ** (16 - bits)}"
        )
    black = [
        name
        for name, each in every
        if each.brightest <= _NEARLY_BLACK and not (each.sixteen_bit and highest < 128)
    ]
    if black:
        yield (
            f"nearly black, with no value above {_NEARLY_BLACK} of 255: "
            f"{count_of(len(black), 'image')}: {some_of(black)}"
        )
    clear = [name for name, each in every if each.transparent]
    if clear:
        yield (
            f"transparent pixels, which are read with the colours that they hide: in "
            f"{count_of(len(clear), 'image')}: {some_of(clear)}"
        )
