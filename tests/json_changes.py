"""Ways to damage a JSON file, one for each value in it and some for the whole."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in JSON that holds no other, empty objects and lists among them."""
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*way, key))
    else:
        yield way


def other(value: Any) -> Any:
    """A value of the same JSON type that could stand in its place."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return float(np.nextafter(value, 0))  # the least that a number can be altered by
        case str():
            return value[:-1] + ("b" if value[-1:] == "a" else "a")
        case list():
            return [1]
        case dict():
            return {"a": 1}
    return "a"


def altered(fields: Any, way: tuple[Any, ...]) -> Any:
    """A copy with another value at the end of the way."""
    return _changed(fields, way, lambda place, key: place.__setitem__(key, other(place[key])))


def changes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every value altered, removed and, in an object, renamed, and the file as a whole."""
    fields = json.loads(data)
    ways = list(leaves(fields))
    ways += sorted({way[:n] for way in ways for n in range(1, len(way))}, key=str)
    for way in ways:
        name = ".".join(map(str, way))
        yield f"altered {name}", _bytes(altered(fields, way))
        yield f"removed {name}", _bytes(_changed(fields, way, lambda place, key: place.pop(key)))
        if isinstance(way[-1], str):
            yield f"renamed {name}", _bytes(_changed(fields, way, _rename))
    yield from {
        "a list": b"[]",
        "null": b"null",
        "a number": b"1",
        "an empty object": b"{}",
        "nothing": b"",
        "cut": data[: len(data) // 2],
        "more": data + b"{}",
        "not UTF-8": b"\xff" + data,
        "NaN": data.replace(b"0.5", b"NaN", 1),
    }.items()


def _changed(fields: Any, way: tuple[Any, ...], change: Any) -> Any:
    fields = copy.deepcopy(fields)
    place = fields
    for key in way[:-1]:
        place = place[key]
    change(place, way[-1])
    return fields


def _rename(place: dict[str, Any], key: str) -> None:
    place[f"{key}_"] = place.pop(key)


def _bytes(fields: Any) -> bytes:
    return json.dumps(fields, indent=1).encode()
