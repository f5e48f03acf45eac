"""What a page is made of: sections of figures, tables and pictures, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .canvas import Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Drawings with their words."""

    drawings: tuple[Drawing, ...]
    """Side by side where there is room."""
    alt: str
    """What they show, for who cannot see it."""
    caption: str

    kind: Literal["figure"] = "figure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; every cell is text."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The first cell of a row names it."""
    numbers: frozenset[int] = frozenset()
    """Columns to align right."""
    folded: str = ""
    """What to press to see it; always seen if empty."""

    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of the data."""

    png: bytes
    is_small: bool
    """Of so few pixels that each is shown as a square."""
    alt: str
    lines: tuple[str, ...]
    """Below it; the first stands out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Images of the data side by side."""

    pictures: tuple[Picture, ...]
    sheet: Drawing
    """All of them in one."""
    caption: str

    kind: Literal["gallery"] = "gallery"


Block: TypeAlias = Figure | Table | Gallery


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question and what answers it."""

    name: str
    """Anchor in the page."""
    title: str
    lead: str = ""
    """What is to be seen, and how it was computed."""
    blocks: tuple[Block, ...] = ()
    missing: str = ""
    """Why there is nothing, if there is nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number that says much."""

    name: str
    value: str
    note: str = ""


def percent(share: float | None, digits: int = 1) -> str:
    """A share, 0 to 1, in words; nothing for None.

    >>> percent(0.5), percent(None)
    ('50.0%', '')
    """
    return "" if share is None else f"{share:.{digits}%}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def shortened(label: str, longest: int = 18) -> str:
    """A name cut to fit into a figure.

    >>> shortened("abcdef", 4)
    'abc…'
    """
    return label if len(label) <= longest else f"{label[: longest - 1]}…"
