"""One sha256 for a set of named tensors: how a delta knows the backbone it was trained on.

The digest covers, for each tensor in order of its name (by code point), one line of JSON
``["name", "dtype", [shape]]`` ended by a newline, then its bytes, row-major and little-endian.
Order of insertion, memory layout and the machine's byte order do not matter; a name, dtype, shape
or bit does.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprint(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Hex sha256 over names, dtypes, shapes and values of these tensors.

    Args:
        tensors: Of any shape and numeric dtype, bfloat16 of ml_dtypes included. Not modified, and
            not copied where already row-major and little-endian.

    >>> fingerprint({"w": np.zeros((2, 3), np.float32)})[:16]
    '2dee88808c11b596'
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        line = json.dumps([name, tensor.dtype.name, list(tensor.shape)], separators=(",", ":"))
        digest.update(line.encode() + b"\n")
        digest.update(little_endian(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def little_endian(tensor: NDArray[Any]) -> NDArray[Any]:
    """The same values, row-major, in the byte order of the files; a copy only where they differ."""
    order = tensor.dtype.byteorder
    if order == ">" or (order == "=" and sys.byteorder == "big"):
        tensor = tensor.astype(tensor.dtype.newbyteorder("<"))
    return np.require(tensor, requirements="C")
