"""Datatypes of the protocol, and the arrays of NumPy that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import InputError

BYTES = "BYTES"
"""Elements of any length."""

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("<u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("<i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        # NumPy knows no bfloat16; no model here takes it, so its bits are all that is kept.
        "BF16": np.dtype("<u2"),
    }
)
"""Every datatype of a fixed size; little-endian, as on the wire."""


def require_datatype(name: str, datatype: str) -> None:
    """Raise unless it is a datatype of the protocol.

    Raises:
        InputError: If it is none.
    """
    if datatype != BYTES and datatype not in DTYPES:
        raise InputError(
            f"input {quoted(name)}: datatype must be one of the protocol's, got {quoted(datatype)}"
        )


def quoted(text: str, most: int = 64) -> str:
    r"""What a client sent, fit to be sent back: printable ASCII, cut to a length.

    >>> quoted("cat\n")
    "'cat\\n'"
    """
    cut = text if len(text) <= most else text[: most - 3] + "..."
    return ascii(cut)
