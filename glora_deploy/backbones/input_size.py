"""Sizes of a network's input: how people write them, and which can be meant."""

from __future__ import annotations

import re
from typing import TypeAlias

HeightWidth: TypeAlias = tuple[int, int]

MAX_SIDE = 4096
"""Pixels; the largest input of timm's own models is 1024. A transformer's attention grows with the
fourth power of the side."""


def parse_size(text: str) -> HeightWidth:
    """Read a size such as 224, a square, or 224x320, height before width.

    >>> parse_size("224"), parse_size("224x320")
    ((224, 224), (224, 320))

    Raises:
        ValueError: If the text is no such size, or a side is out of range.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if match is None:
        raise ValueError(
            f"an input size must be pixels such as 224, or HEIGHTxWIDTH such as 224x320, "
            f"got {text!r}"
        )
    size = (int(match[1]), int(match[2] or match[1]))
    require_size(size)
    return size


def require_size(size: HeightWidth) -> None:
    """Check that height and width can be meant.

    Raises:
        ValueError: If one is below 1 or above ``MAX_SIDE``.
    """
    height, width = size
    if not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise ValueError(
            f"each side of the input must have 1 to {MAX_SIDE} pixels, got {height}x{width}"
        )
