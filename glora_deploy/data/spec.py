"""The text that names a data set: ``KIND:PATH``, and ``?split=...`` where the splits are told.

The text alone says which images are read, so a manifest that keeps it can have them read again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args
from urllib.parse import unquote

from ..errors import DataError

Kind: TypeAlias = Literal["folder", "lists", "vtab"]

VAL_SHARE = 0.2
TEST_SHARE = 0.2

_SPLIT = "split="
_NAMES = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Where the three splits come from: a folder or list below PATH, or a share of train."""

    train: str
    """Folder or list; ``.`` is PATH itself."""
    val: str | float
    """Folder or list, or the share of train that is drawn for it."""
    test: str | float
    """Folder or list, or the share of train that is drawn for it."""

    def __str__(self) -> str:
        return f"train={self.train},val={self.val},test={self.test}"

    @classmethod
    def parse(cls, text: str) -> Splits:
        """Read ``train=PLACE,val=PLACE or SHARE,test=PLACE or SHARE``.

        >>> Splits.parse("train=train,val=0.2,test=val")
        Splits(train='train', val=0.2, test='val')

        Raises:
            DataError: If a split is missing or doubled, a share is not between 0 and 1, or a
                place is not below PATH.
        """
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        if sorted(name for name, _ in pairs) != ["test", "train", "val"]:
            raise DataError(
                f"split: must give train, val and test once each, got {text!r}. Give all three, "
                f"such as {_completed(pairs)}, where a number is a share of train to be drawn."
            )
        values = {name: _place_or_share(name, value) for name, value in pairs}
        train, val, test = (values[name] for name in _NAMES)
        if isinstance(train, float):
            raise DataError(
                f"split: train must be a folder or list, got the share {train}. Give the place to "
                f"draw from, such as train=.,val={VAL_SHARE},test={TEST_SHARE} (. is PATH itself)."
            )
        if sum(part for part in (val, test) if isinstance(part, float)) >= 1:
            raise DataError(
                f"split: the shares must leave something for train, got {text!r}. Give smaller "
                f"ones, such as val={VAL_SHARE},test={TEST_SHARE}."
            )
        places = [part for part in (train, val, test) if isinstance(part, str)]
        if len(set(places)) < len(places):
            raise DataError(
                f"split: the three must be different places, got {text!r}. Where val or test has "
                f"none of its own, give a share of train, such as val={VAL_SHARE}."
            )
        return cls(train=train, val=val, test=test)


def _completed(pairs: Iterable[tuple[str, str]]) -> str:
    """An example with what was given, as far as that is any good."""
    given = {"train": "train", "val": f"{VAL_SHARE}", "test": f"{TEST_SHARE}"}
    given |= {name: value for name, value in pairs if name in _NAMES and value}
    example = ",".join(f"{name}={given[name]}" for name in _NAMES)
    try:
        return str(Splits.parse(example))
    except DataError:
        return f"train=.,val={VAL_SHARE},test={TEST_SHARE}"


def _place_or_share(name: str, text: str) -> str | float:
    try:
        share = float(text)
    except ValueError:
        place = posixpath.normpath(text)
        if not text or place.startswith("/") or place.split("/")[0] == "..":
            raise DataError(
                f"split: {name} must be a place below PATH, got {text!r}. Write it as seen from "
                "PATH, which is . itself."
            ) from None
        return place
    if not 0 < share < 1:
        raise DataError(
            f"split: {name} must be a share above 0 and below 1, got {text}. "
            f"A folder of that name is written ./{text}."
        )
    return share


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A data set in files."""

    kind: Kind
    root: Path
    splits: Splits | None
    """None where the data set's own layout says it."""

    @classmethod
    def parse(cls, spec: str) -> DataSpec:
        """Read ``folder:PATH``, ``lists:PATH`` or ``vtab:PATH``, with ``?split=...`` or without.

        A folder whose own name holds the ``?`` is taken before options are looked for.

        Raises:
            DataError: If it is none of these, PATH is no folder, or an option is unknown.
        """
        kind, colon, path = spec.partition(":")
        if not colon or kind not in get_args(Kind):
            raise DataError(f"data: must be folder:PATH, lists:PATH or vtab:PATH, got {spec!r}")
        splits = None
        before, mark, options = path.rpartition("?")
        if mark and not _root(path).is_dir():
            if not options.startswith(_SPLIT):
                raise DataError(
                    f"{spec}: what follows ? must be split=..., got {options!r}. A ? in the name "
                    "of a folder is taken as it is where the folder exists."
                )
            path, splits = before, Splits.parse(unquote(options.removeprefix(_SPLIT)))
        try:
            path.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"data: PATH must be UTF-8, as it is kept with the delta, got {path!r}. Rename "
                "the folder, or make a link to it."
            ) from None
        if not path:
            raise DataError(
                f"{spec}: PATH must be a folder, got none. Give one, such as {kind}:pets; the "
                f"current folder is {kind}:."
            )
        root = _root(path)
        if not root.is_dir():
            raise DataError(f"{spec}: PATH must be a folder, got {str(root)!r}")
        if splits is not None and kind == "vtab":
            raise DataError(
                f"{spec}: vtab has its own splits. Other splits of the same lists: lists:{path} "
                "with split=train=train800.txt,val=val200.txt,test=test.txt"
            )
        return cls(cast(Kind, kind), root, splits)


def _root(path: str) -> Path:
    return Path(path).expanduser()


def with_splits(spec: str, splits: str) -> str:
    """Add a choice of splits to the text of a data set.

    >>> with_splits("folder:imagenet", "train=train,val=0.2,test=val")
    'folder:imagenet?split=train=train,val=0.2,test=val'

    Raises:
        DataError: If the choice is malformed, or the data set takes none or has one already.
    """
    Splits.parse(splits)
    if spec.partition(":")[0] not in ("folder", "lists") or ":" not in spec:
        raise DataError(
            f"split: goes with folder:PATH or lists:PATH, got {spec!r}, which has splits of its "
            "own. Leave it out."
        )
    if f"?{_SPLIT}" in spec:
        raise DataError(f"split: must be given once, {spec!r} has one already. Take one out.")
    for sign in "%?":
        splits = splits.replace(sign, f"%{ord(sign):02X}")
    return f"{spec}?{_SPLIT}{splits}"
