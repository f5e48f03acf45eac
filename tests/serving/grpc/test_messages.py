"""Messages of protobuf to calls, and replies to messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from glora_deploy.serving.errors import InputError
from glora_deploy.serving.grpc.messages import has_many_values, read_call


def message(datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> Any:
    request = pb.ModelInferRequest(model_name="pets", model_version="2", id="7")
    request.inputs.add(
        name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(1 << 15), 1]),
        ("INT32", "int_contents", [-(1 << 31), 1]),
        ("INT64", "int64_contents", [-(1 << 63), 1]),
        ("UINT8", "uint_contents", [255, 0]),
        ("UINT16", "uint_contents", [65535, 0]),
        ("UINT32", "uint_contents", [(1 << 32) - 1, 0]),
        ("UINT64", "uint64_contents", [(1 << 64) - 1, 0]),
        ("FP32", "fp32_contents", [0.5, -1.25]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"one", b""]),
    ],
)
def test_listed_values_of_every_datatype(datatype: str, field: str, values: list[Any]) -> None:
    (tensor,) = read_call(message(datatype, [1, 2], **{field: values})).inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, (1, 2))
    assert tensor.values.tolist() == [values]


def test_bytes_are_read_as_their_datatype_says() -> None:
    values = np.array([[1.5, -2.0, 3.25]], "<f4")
    (tensor,) = read_call(message("FP32", [1, 3], values.tobytes())).inputs
    np.testing.assert_array_equal(tensor.values, values)
    (tensor,) = read_call(message("BYTES", [2], b"\x02\0\0\0ab\0\0\0\0")).inputs
    assert tensor.values.tolist() == [b"ab", b""]


def test_what_a_call_says_beside_its_tensors() -> None:
    request = message("FP32", [1], b"\0\0\0\0")
    request.parameters["priority"].int64_param = 2
    request.parameters["note"].string_param = "kept"
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3
    call = read_call(request)
    assert (call.model, call.version, call.id) == ("pets", "2", "7")
    assert call.parameters == {"priority": 2, "note": "kept"}
    assert [(one.name, one.classification) for one in call.outputs] == [("logits", 3)]


def wrong_count() -> Any:
    request = message("FP32", [1], b"\0\0\0\0")
    request.raw_input_contents.append(b"")
    return request


def shared_input() -> Any:
    request = message("FP32", [1])
    request.inputs[0].parameters["shared_memory_region"].string_param = "/tmp/x"
    return request


def shared_output() -> Any:
    request = message("FP32", [1], b"\0\0\0\0")
    request.outputs.add(name="logits").parameters["shared_memory_region"].string_param = "x"
    return request


def parameter_without_value() -> Any:
    request = message("FP32", [1], b"\0\0\0\0")
    request.parameters["priority"].SetInParent()
    return request


def classes(value: Any) -> Any:
    request = message("FP32", [1], b"\0\0\0\0")
    parameter = request.outputs.add(name="logits").parameters["classification"]
    if isinstance(value, str):
        parameter.string_param = value
    else:
        parameter.int64_param = value
    return request


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (wrong_count(), "raw_input_contents must be one for each of 1 inputs, got 2"),
        (message("FP32", [1], b"\0\0\0\0", fp32_contents=[1.0]), "got both"),
        (message("FP32", [2], b"\0\0\0\0"), "must be 8 bytes"),
        (message("FP32", [2], fp32_contents=[1.0]), "must have 2 values"),
        (message("FP32", [1], int_contents=[1]), "must have 1 values"),
        (message("FP16", [1]), "must be sent in raw_input_contents"),
        (message("INT8", [1], int_contents=[300]), "in the range of INT8"),
        (message("FP31", [1], b""), "datatype must be one of the protocol's"),
        (message("FP32", [-1], b""), "integers of 0 or more"),
        (message("BYTES", [1], b"\x09\0\0\0ab"), "elements, each behind its length"),
        (shared_input(), "not in shared memory"),
        (shared_output(), "not in shared memory"),
        (parameter_without_value(), "'priority' must have a value"),
        (classes(-1), "classification must be an integer of 0 or more"),
        (classes("3"), "classification must be an integer of 0 or more"),
    ],
)
def test_what_is_no_call_is_refused(request_: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        read_call(request_)


def test_many_listed_values_are_known_before_they_are_read() -> None:
    assert has_many_values(message("FP32", [100], fp32_contents=[0.0] * 100), 399)
    assert not has_many_values(message("FP32", [2], fp32_contents=[0.0] * 2), 399)
    assert not has_many_values(message("FP32", [100], bytes(400)), 399)
