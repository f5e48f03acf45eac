"""Sizes as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def to_bytes(text: str) -> int:
    """A size such as ``500MB`` or ``4GiB``, in bytes.

    >>> to_bytes("1.5KiB"), to_bytes("2GB")
    (1536, 2000000000)

    Raises:
        ValueError: If it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"a size must be a number with a unit, such as 500MB or 4GiB, got {text!r}"
        )
    number, prefix, binary = match.groups()
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)
