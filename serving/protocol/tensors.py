"""Tensors of a call and of its answer, with a name, a datatype and a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .datatypes import BYTES, DTYPES, quoted, require_datatype

Parameter: TypeAlias = str | bool | int | float

MAX_DIMS = 16
MAX_ELEMENTS = 1 << 40
"""Far above what any body can hold: a product of dimensions is refused before it is used."""

_LENGTH_BYTES = 4
"""Each element of BYTES follows its length, uint32 little-endian."""

_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}
"""Kind of a datatype's array to the kinds of listed values that it may be made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    """Of ``shape``; for BYTES of dtype object, each element of type bytes. May be read-only."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def is_bytes(self) -> bool:
        """Whether its elements are of any length."""
        return self.datatype == BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedOutput:
    """An output that the client wants."""

    name: str
    classification: int = 0
    """The k best classes as strings instead of the values; 0 for the values."""
    binary: bool = False
    """As bytes behind the JSON; HTTP only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferCall:
    """What a client asks of one model."""

    model: str
    version: str = ""
    """As the client names it; empty for the current one."""
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    """Empty for all."""


def checked_shape(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """The shape of an input, if it can be one.

    Raises:
        InputError: If a dimension is no integer of 0 or more, or there are too many of them or of
            elements.
    """
    if len(shape) > MAX_DIMS:
        raise InputError(
            f"input {quoted(name)}: shape must have at most {MAX_DIMS} dimensions, got {len(shape)}"
        )
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(
                f"input {quoted(name)}: shape must be integers of 0 or more, "
                f"got {quoted(repr(size))}"
            )
    if math.prod(shape) > MAX_ELEMENTS:
        raise InputError(
            f"input {quoted(name)}: must have at most {MAX_ELEMENTS} elements, shape says more"
        )
    return tuple(shape)


def from_bytes(
    name: str,
    datatype: str,
    shape: Sequence[Any],
    raw: bytes | memoryview,
    parameters: Mapping[str, Parameter] | None = None,
) -> Tensor:
    """A tensor from its bytes: little-endian, row-major, unpadded; BYTES with lengths before each.

    Args:
        name: Of the input.
        datatype: Of its elements.
        shape: As the client states it.
        raw: Its bytes. Not copied but for BYTES.
        parameters: Of the input.

    Raises:
        InputError: If the datatype is none, or the size is not that of the shape.
    """
    require_datatype(name, datatype)
    sizes = checked_shape(name, shape)
    count = math.prod(sizes)
    if datatype == BYTES:
        values = _elements(name, raw, count).reshape(sizes)
    else:
        dtype = DTYPES[datatype]
        if len(raw) != count * dtype.itemsize:
            raise InputError(
                f"input {quoted(name)}: must be {count * dtype.itemsize} bytes for {datatype} "
                f"{list(sizes)}, got {len(raw)}"
            )
        values = np.frombuffer(raw, dtype).reshape(sizes)
    return Tensor(
        name=name, datatype=datatype, shape=sizes, values=values, parameters=parameters or {}
    )


def from_values(
    name: str,
    datatype: str,
    shape: Sequence[Any],
    data: Any,
    parameters: Mapping[str, Parameter] | None = None,
) -> Tensor:
    """A tensor from listed values, flat or nested as the shape says, in row-major order.

    Args:
        name: Of the input.
        datatype: Of its elements.
        shape: As the client states it.
        data: Numbers, booleans, or for BYTES str or bytes; in lists.
        parameters: Of the input.

    Raises:
        InputError: If values are of another type, out of range, ragged or of another count.
    """
    require_datatype(name, datatype)
    sizes = checked_shape(name, shape)
    count = math.prod(sizes)
    if datatype == "BF16":
        raise InputError(f"input {quoted(name)}: BF16 must be sent as bytes")
    values = _strings(name, data, count) if datatype == BYTES else _numbers(name, datatype, data)
    if values.size != count:
        raise InputError(
            f"input {quoted(name)}: must have {count} values for shape {list(sizes)}, "
            f"got {values.size}"
        )
    return Tensor(
        name=name,
        datatype=datatype,
        shape=sizes,
        values=values.reshape(sizes),
        parameters=parameters or {},
    )


def to_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor as they go over the wire."""
    if not tensor.is_bytes:
        return tensor.values.astype(DTYPES[tensor.datatype], order="C", copy=False).tobytes()
    parts = []
    for element in tensor.values.flat:
        parts += [len(element).to_bytes(_LENGTH_BYTES, "little"), element]
    return b"".join(parts)


def object_array(elements: Sequence[bytes]) -> NDArray[Any]:
    """A flat array of BYTES elements; NumPy's own constructor would pad and trim them."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _elements(name: str, raw: bytes | memoryview, count: int) -> NDArray[Any]:
    """Split what holds lengths and elements in turn."""
    found: list[bytes] = []
    at, end = 0, len(raw)
    # Each element takes four bytes at least: a shape alone makes nothing large.
    if count * _LENGTH_BYTES <= end:
        while at + _LENGTH_BYTES <= end and len(found) < count:
            length = int.from_bytes(raw[at : at + _LENGTH_BYTES], "little")
            at += _LENGTH_BYTES
            if at + length > end:
                break
            found.append(bytes(raw[at : at + length]))
            at += length
    if len(found) != count or at != end:
        raise InputError(
            f"input {quoted(name)}: its {end} bytes must be {count} elements, each behind its "
            "length as 4 bytes little-endian"
        )
    return object_array(found)


def _strings(name: str, data: Any, count: int) -> NDArray[Any]:
    found: list[bytes] = []
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(reversed(value))
        elif isinstance(value, bytes):
            found.append(value)
        elif isinstance(value, str):
            try:
                found.append(value.encode())
            except UnicodeEncodeError as error:
                raise InputError(
                    f"input {quoted(name)}: strings must be Unicode that UTF-8 can hold"
                ) from error
        else:
            raise InputError(
                f"input {quoted(name)}: values of BYTES must be strings, got {quoted(repr(value))}"
            )
    return object_array(found)


def _numbers(name: str, datatype: str, data: Any) -> NDArray[Any]:
    dtype = DTYPES[datatype]
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"input {quoted(name)}: data must be a list of numbers, flat or nested as its shape"
        ) from error
    if values.size == 0 and values.dtype.kind == "f":  # np.asarray([])
        return np.zeros(values.shape, dtype)
    if values.dtype.kind not in _KINDS[dtype.kind]:
        raise InputError(f"input {quoted(name)}: data must be numbers that {datatype} can hold")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if values.size and (int(values.min()) < limits.min or int(values.max()) > limits.max):
            raise InputError(f"input {quoted(name)}: data must be in the range of {datatype}")
    with np.errstate(over="ignore"):  # to infinity, which the model's own check refuses
        return values.astype(dtype)
