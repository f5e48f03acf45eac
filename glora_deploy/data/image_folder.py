"""The image files below a folder, with what lies beside them told apart from what is ours.

Programs leave files of their own among images: previews, indices, copies of every image. Whatever
a person does not see when they open the folder is no data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..wording import some_of
from .image_file import image_suffixes

_IGNORED_NAMES = frozenset(
    (
        "__macosx",  # zip files made on a Mac: a shadow of every file
        "@eadir",  # Synology: previews of every image
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    )
)
"""In any case, at every depth; so is every name with a leading dot."""


def _is_ignored(name: str) -> bool:
    """Whether a file or folder is some program's own.

    >>> [_is_ignored(name) for name in (".ipynb_checkpoints", "._0.png", "Thumbs.db", "cat")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _IGNORED_NAMES


def _is_image_name(name: str) -> bool:
    """Whether a file's suffix is that of an image that can be read."""
    return os.path.splitext(name)[1].lower() in image_suffixes()  # noqa: PTH122 (called per file)


def visible_folders(folder: Path) -> list[str]:
    """Names of the subfolders, links to folders included, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not _is_ignored(e.name) and _is_folder(e))


@dataclass(slots=True)
class Found:
    """What lies below a folder."""

    images: list[str] = field(default_factory=list)
    """Paths relative to the folder asked for, ordered part by part."""
    skipped: list[str] = field(default_factory=list)
    """Likewise: other files, and links that lead back to a folder above them."""


def find_images(root: Path, below: str) -> Found:
    """Every image under ``root/below``, links to folders followed; paths relative to ``root``.

    Raises:
        DataError: If the name of an image, or of a folder of images, is not UTF-8.
    """
    start = Path(below)
    found = Found()
    above = frozenset(map(_identity, (root / start, *(root / p for p in start.parents))))
    for parts, kind in _walk(root / start, start.parts, above):
        (found.images if kind == "image" else found.skipped).append("/".join(parts))
    # By parts: a folder a comes before a file a.png, whatever their next characters are.
    found.images.sort(key=lambda path: path.split("/"))
    found.skipped.sort()
    require_text(root, found.images)
    return found


def folders_with_images(folder: Path) -> list[str]:
    """Names of the subfolders, sorted, that hold an image at any depth; stops at the first one."""
    return [name for name in visible_folders(folder) if _holds_image(folder / name)]


def require_text(root: Path, names: Sequence[str]) -> None:
    """Names below a folder must be UTF-8: they are hashed, and kept with a delta.

    Raises:
        DataError: If some are not; names the first with their bytes.
    """
    foreign = [name for name in names if not _is_text(name)]
    if foreign:
        raise DataError(
            f"{root}: names must be UTF-8, got {len(foreign):,} that are not: {some_of(foreign)}. "
            "Rename them, for instance with: convmv -f LATIN1 -t UTF-8 -r --notest FOLDER"
        )


def loose_images(root: Path, folder: str) -> list[str]:
    """Images that lie in ``root/folder`` itself, in no folder below it; relative to ``root``."""
    place = root / folder
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        names = [e.name for e in entries if not _is_ignored(e.name) and _is_image_name(e.name)]
    return sorted((Path(folder) / name).as_posix() for name in names)


_Identity = tuple[int, int]


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _walk(
    folder: Path, parts: tuple[str, ...], above: frozenset[_Identity]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each file's path and whether it is an ``image`` or ``other``; ``above`` guards from loops."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            path = (*parts, entry.name)
            if not _is_folder(entry):
                # A link that leads nowhere is an image that cannot be read, which is said later.
                yield path, "image" if _is_image_name(entry.name) else "other"
            elif (identity := _identity(Path(entry.path))) in above:
                yield path, "other"
            else:
                yield from _walk(Path(entry.path), path, above | {identity})


def _holds_image(folder: Path) -> bool:
    above = frozenset(map(_identity, (folder, folder.parent)))
    return any(kind == "image" for _, kind in _walk(folder, (), above))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
