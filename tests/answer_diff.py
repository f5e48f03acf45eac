"""Where two answers differ: by path, with numbers equal within rounding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

ATOL = 1e-5  # float32: two programs add up in another order
_CLASS = re.compile(r"(-?\d+\.\d{6}):(\d+:.*)")


def differing(one: Mapping[str, Any], other: Mapping[str, Any], first: str) -> list[str]:
    """Paths that only one of two answers has, or that hold another value.

    Args:
        one: An answer, of plain dicts, lists and values.
        other: Another.
        first: The key to compare before all others: where it differs, nothing else is compared.

    Returns:
        Such as ``json.outputs.0.name``, sorted; or ``status 500 -> 400`` alone.
    """
    if one[first] != other[first]:
        return [f"{first} {one[first]} -> {other[first]}"]
    left, right = dict(_leaves(one)), dict(_leaves(other))
    return sorted(
        path
        for path in left.keys() | right.keys()
        if path not in left or path not in right or not _same(left[path], right[path])
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and not isinstance(value[0], int | float):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    else:
        yield path, value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return False
        return bool(np.allclose(one, other, rtol=0, atol=ATOL))
    if isinstance(one, str) and isinstance(other, str):
        left, right = _CLASS.fullmatch(one), _CLASS.fullmatch(other)
        if left and right:
            near = abs(float(left[1]) - float(right[1])) < ATOL
            return near and left[2] == right[2]
    return bool(one == other)
