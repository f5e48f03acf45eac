"""The body of an inference request <-> tensors: JSON, then the bytes that it announces.

The binary-tensor extension: ``inference-header-content-length`` is the length of the JSON; each
input with ``binary_data_size`` takes that many of the bytes behind it, in the order of ``inputs``.
Without that header the whole body is JSON; where it is 0, the whole body is the one input.
Nothing here knows HTTP, a model or the engine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import InputError
from ..protocol.datatypes import quoted
from ..protocol.infer import IMAGE, InferReply
from ..protocol.tensors import (
    InferCall,
    Parameter,
    RequestedOutput,
    Tensor,
    from_bytes,
    from_values,
    to_bytes,
)

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_MAX_HEADER_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedReply:
    """An answer as it goes over the wire."""

    body: bytes
    json_bytes: int | None
    """How much of the body is JSON; None if all of it is."""


def header_length(stated: str | None, body_bytes: int) -> int | None:
    """The length of the JSON at the head of a body.

    Args:
        stated: What the header says; None where there is no such header.
        body_bytes: Of the body, decompressed.

    Raises:
        InputError: If it is no integer of 0 to ``body_bytes``.
    """
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit() and len(stated) <= _MAX_HEADER_DIGITS):
        raise InputError(
            f"inference-header-content-length must be an integer, got {quoted(stated)}"
        )
    if int(stated) > body_bytes:
        raise InputError(
            f"inference-header-content-length must be at most the body's {body_bytes} bytes, "
            f"got {stated}"
        )
    return int(stated)


def read_call(
    model: str,
    version: str,
    body: bytes,
    json_bytes: int | None,
    *,
    raw_shape: Sequence[int],
    max_depth: int,
) -> InferCall:
    """A call from the body of its request.

    Args:
        model: Of the path.
        version: Of the path; may be empty.
        body: Decompressed. The call's tensors may point into it.
        json_bytes: As :func:`header_length` gives it.
        raw_shape: Shape of one image: what a body without any JSON holds.
        max_depth: Brackets within brackets.

    Raises:
        InputError: If it is not what the protocol says.
    """
    if json_bytes == 0:
        image = from_bytes(IMAGE, "FP32", (1, *raw_shape), body)
        return InferCall(model=model, version=version, inputs=(image,), outputs=())
    end = len(body) if json_bytes is None else json_bytes
    record = read_json(body[:end], max_depth=max_depth)
    parameters = _parameters(record, "the request")
    inputs, at = [], end
    for entry in _entries(record, "inputs"):
        tensor, at = _input(entry, memoryview(body), at)
        inputs.append(tensor)
    if at != len(body):
        raise InputError(
            f"the body must end with its last input, {len(body) - at} bytes are left over"
        )
    binary = _flag(parameters, "binary_data_output")
    return InferCall(
        model=model,
        version=version,
        id=_text(record, "id", ""),
        parameters=parameters,
        inputs=tuple(inputs),
        outputs=tuple(
            _output(entry, binary) for entry in _entries(record, "outputs", needed=False)
        ),
    )


def wants_binary(call: InferCall, json_bytes: int | None) -> bool:
    """Whether outputs that were not named go out as bytes."""
    return json_bytes == 0 or call.parameters.get("binary_data_output") is True


def write_reply(reply: InferReply, binary: Sequence[bool]) -> EncodedReply:
    """The body of an answer.

    Args:
        reply: The answer.
        binary: Of each output, whether it follows the JSON as bytes.
    """
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor, as_bytes in zip(reply.outputs, binary, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if as_bytes:
            tail.append(to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = _listed(tensor)
        outputs.append(entry)
    record: dict[str, Any] = {"model_name": reply.model, "model_version": reply.version}
    if reply.id:
        record["id"] = reply.id
    record |= {"parameters": dict(reply.parameters), "outputs": outputs}
    head = json.dumps(record, separators=(",", ":")).encode()
    return EncodedReply(body=b"".join([head, *tail]), json_bytes=len(head) if tail else None)


def read_json(text: bytes, *, max_depth: int, empty: Any = None) -> dict[str, Any]:
    """A JSON object.

    Args:
        text: UTF-8.
        max_depth: Brackets within brackets.
        empty: What an empty text stands for; refused if None.

    Raises:
        InputError: If it is no object, nested too deeply, or holds NaN or infinity.
    """
    if not text.strip() and empty is not None:
        return dict(empty)
    _require_shallow(text, max_depth)
    try:
        record = json.loads(text.decode(), parse_constant=_not_a_number)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(";")[0]  # what follows is advice to a programmer of ours
        raise InputError(f"the body must be JSON: {quoted(reason, 120)}") from error
    if not isinstance(record, dict):
        raise InputError(f"the body must be a JSON object, got {type(record).__name__}")
    return record


def _require_shallow(text: bytes, max_depth: int) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > max_depth:
                raise InputError(f"JSON must be nested at most {max_depth} deep")
        elif token in (b"]", b"}"):
            depth -= 1


def _not_a_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _input(entry: Mapping[str, Any], body: memoryview, at: int) -> tuple[Tensor, int]:
    """One input, and where in the body the next one's bytes begin."""
    name, datatype = _text(entry, "name"), _text(entry, "datatype")
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise InputError(f"input {quoted(name)}: shape must be a list of integers")
    parameters = _parameters(entry, f"input {quoted(name)}")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise InputError(f"input {quoted(name)}: must have data or binary_data_size")
        return from_values(name, datatype, shape, entry["data"], parameters), at
    if "data" in entry:
        raise InputError(f"input {quoted(name)}: must have data or binary_data_size, got both")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - at:
        raise InputError(
            f"input {quoted(name)}: binary_data_size must be 0 to the {len(body) - at} bytes that "
            f"are left of the body, got {quoted(repr(size))}"
        )
    return from_bytes(name, datatype, shape, body[at : at + size], parameters), at + size


def _output(entry: Mapping[str, Any], binary: bool | None) -> RequestedOutput:
    name = _text(entry, "name")
    parameters = _parameters(entry, f"output {quoted(name)}")
    own = _flag(parameters, "binary_data")
    classes = parameters.get("classification", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise InputError(
            f"output {quoted(name)}: classification must be an integer of 0 or more, "
            f"got {quoted(repr(classes))}"
        )
    return RequestedOutput(
        name=name, classification=classes, binary=bool(binary if own is None else own)
    )


def _entries(record: Mapping[str, Any], key: str, *, needed: bool = True) -> list[dict[str, Any]]:
    entries = record.get(key)
    if entries is None and not needed:
        return []
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise InputError(f"{key} must be a list of objects")
    return entries


def _text(record: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"{key} must be a string, got {quoted(repr(value))}")
    return value


def _parameters(record: Mapping[str, Any], where: str) -> dict[str, Parameter]:
    parameters = record.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"{where}: parameters must be an object")
    for key, value in parameters.items():
        if not isinstance(value, str | bool | int | float):
            raise InputError(
                f"{where}: parameter {quoted(key)} must be a string, a number or a boolean"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: parameter {quoted(key)} must be finite")
    return parameters


def _flag(parameters: Mapping[str, Parameter], key: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"parameter {key} must be true or false, got {quoted(repr(value))}")
    return value


def _listed(tensor: Tensor) -> list[Any]:
    """The values, flat, as JSON has them."""
    values: list[Any] = tensor.values.reshape(-1).tolist()
    return [value.decode("utf-8", "replace") for value in values] if tensor.is_bytes else values
