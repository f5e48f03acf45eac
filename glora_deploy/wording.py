"""Names in messages: the first few of many, safe to print."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    >>> some_of(["a", "b"])
    'a, b'
    """
    shown = ", ".join(map(printable, names[:most]))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def printable(name: str) -> str:
    r"""The name with escapes for what a terminal cannot show: controls, and bytes that are no text.

    A file name that is not UTF-8 comes from the system with its bytes as lone surrogates.

    >>> printable("caf\udce9\n.png")
    'caf\\xe9\\n.png'
    """
    return "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"):
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def count_of(n: int, noun: str) -> str:
    """A count with its noun.

    >>> count_of(1, "image"), count_of(1200, "image"), count_of(2, "class")
    ('1 image', '1,200 images', '2 classes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"
