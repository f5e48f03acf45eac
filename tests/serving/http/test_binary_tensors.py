"""Bodies of inference requests: what is read back, and that nothing breaks the reader."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from glora_deploy.serving.errors import InputError
from glora_deploy.serving.http.binary_tensors import (
    header_length,
    read_call,
    read_json,
    write_reply,
)
from glora_deploy.serving.protocol.infer import InferReply
from glora_deploy.serving.protocol.tensors import InferCall, Tensor, object_array, to_bytes
from glora_deploy.serving.tasks.contract import Answer

RAW_SHAPE = (3, 2, 2)
DTYPES = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8, "BOOL": np.bool_}


def read(body: bytes, json_bytes: int | None = None) -> InferCall:
    return read_call("pets", "", body, json_bytes, raw_shape=RAW_SHAPE, max_depth=100)


def input_of(**fields: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1], "datatype": "FP32", "data": [1.0]} | fields


def body_of(**fields: Any) -> bytes:
    return json.dumps({"inputs": [input_of()]} | fields).encode()


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from([*DTYPES, "BYTES"]))
    shape = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    count = int(np.prod(shape))
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        values: Any = object_array(elements)
    else:
        numbers = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
        values = np.array(numbers, DTYPES[datatype])
    return Tensor(
        name=draw(st.text(max_size=5)),
        datatype=datatype,
        shape=shape,
        values=values.reshape(shape),
    )


@given(st.lists(st.tuples(tensors(), st.booleans()), max_size=4), st.text(max_size=8))
def test_tensors_in_json_and_behind_it_are_read_back(
    sent: list[tuple[Tensor, bool]], call_id: str
) -> None:
    inputs, tail = [], b""
    for tensor, binary in sent:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "shape": tensor.shape,
            "datatype": tensor.datatype,
        }
        if binary or tensor.is_bytes:  # not all bytes are a string of JSON
            raw = to_bytes(tensor)
            tail += raw
            entry["parameters"] = {"binary_data_size": len(raw)}
        else:
            entry["data"] = tensor.values.tolist()
        inputs.append(entry)
    head = json.dumps({"id": call_id, "inputs": inputs}).encode()
    call = read(head + tail, len(head))
    assert call.id == call_id
    for tensor, (expected, _) in zip(call.inputs, sent, strict=True):
        assert (tensor.name, tensor.datatype) == (expected.name, expected.datatype)
        assert tensor.values.tolist() == expected.values.tolist()


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 200)))
@example(b"[" * 100_000, None)
@example(b'{"a":' * 100_000, None)
@example(b"1" * 5000, None)
@example(b'{"inputs":[{}]}', 15)
@example(b'"' + b"\\" * 10_000, None)
def test_garbage_is_refused_and_never_more(body: bytes, json_bytes: int | None) -> None:
    with suppress(InputError):
        read(body, None if json_bytes is None else min(json_bytes, len(body)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries({}, optional={"id": JSON, "inputs": JSON, "outputs": JSON}), st.binary()
)
def test_json_of_any_form_is_read_or_refused(record: dict[str, Any], tail: bytes) -> None:
    head = json.dumps(record).encode()
    for body, json_bytes in ((head, None), (head + tail, len(head))):
        with suppress(InputError):
            read(body, json_bytes)


@given(st.fixed_dictionaries(dict.fromkeys(["name", "shape", "datatype", "data"], JSON)))
def test_an_input_of_any_form_is_read_or_refused(entry: dict[str, Any]) -> None:
    with suppress(InputError):
        read(json.dumps({"inputs": [entry]}).encode())


def test_a_body_without_json_is_one_image() -> None:
    values = np.arange(12, dtype=np.float32)
    (tensor,) = read(values.tobytes(), 0).inputs
    assert (tensor.name, tensor.shape) == ("image", (1, *RAW_SHAPE))
    assert tensor.values.reshape(-1).tolist() == values.tolist()
    with pytest.raises(InputError, match="must be 48 bytes"):
        read(values.tobytes()[1:], 0)


@pytest.mark.parametrize(
    ("stated", "expected"), [(None, None), ("0", 0), ("7", 7), ("10", 10), ("007", 7)]
)
def test_a_header_states_the_length_of_the_json(stated: str | None, expected: int | None) -> None:
    assert header_length(stated, 10) == expected


@pytest.mark.parametrize(
    "stated", ["11", "-1", "", " 1", "1.0", "0x1", "٣", "1" * 13, "1" * 100_000]
)
def test_a_length_that_is_none_is_refused(stated: str) -> None:
    with pytest.raises(InputError, match="inference-header-content-length must be"):
        header_length(stated, 10)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be JSON"),
        (b"[]", "must be a JSON object, got list"),
        (b"\xff", "must be JSON"),
        (b'{"inputs": NaN}', "NaN is no JSON"),
        (b"{}", "inputs must be a list of objects"),
        (b'{"inputs": [1]}', "inputs must be a list of objects"),
        (b'{"inputs": ' + b"[" * 101 + b"]" * 101 + b"}", "nested at most 100 deep"),
        (body_of(id=7), "id must be a string"),
        (body_of(parameters=[]), "parameters must be an object"),
        (body_of(parameters={"a": {}}), "must be a string, a number or a boolean"),
        (body_of(parameters={"binary_data_output": 1}), "must be true or false"),
        (body_of(inputs=[input_of(name=None)]), "name must be a string"),
        (body_of(inputs=[input_of(shape="1")]), "shape must be a list"),
        (body_of(inputs=[{"name": "a", "shape": [1], "datatype": "FP32"}]), "must have data or"),
        (body_of(inputs=[input_of(parameters={"binary_data_size": 0})]), "got both"),
        (body_of(outputs={}), "outputs must be a list of objects"),
        (
            body_of(outputs=[{"name": "a", "parameters": {"classification": -1}}]),
            "classification must be an integer",
        ),
        (body_of(outputs=[{"name": "a", "parameters": {"binary_data": 0}}]), "true or false"),
    ],
)
def test_what_the_protocol_does_not_say_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(body)


@pytest.mark.parametrize("size", [-1, 5, True, "4", 4.0, 2**70])
def test_a_size_that_the_body_has_not_is_refused(size: Any) -> None:
    entry = {"name": "image", "shape": [1], "datatype": "FP32"}
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": size}}]}).encode()
    with pytest.raises(InputError, match="binary_data_size must be 0 to the 4 bytes"):
        read(head + bytes(4), len(head))


def test_bytes_that_no_input_takes_are_refused() -> None:
    head = body_of()
    with pytest.raises(InputError, match="3 bytes are left over"):
        read(head + b"abc", len(head))


def test_brackets_within_strings_are_not_counted() -> None:
    text = json.dumps({"a": "[" * 500 + '\\"' + "{" * 500}).encode()
    assert read_json(text, max_depth=1)["a"].count("[") == 500


def test_an_answer_is_json_with_the_bytes_of_some_outputs_behind_it() -> None:
    values = np.array([[1.5, -2]], np.float32)
    words = object_array([b"\xc3\x9f", b"\xff"]).reshape(1, 2)
    answer = Answer(
        logits=values, task="pets", version="v1", delta_sha256="ab",
        queue_ns=1, swap_ns=2, compute_ns=3, batch_size=4,
    )  # fmt: skip
    reply = InferReply(
        model="pets",
        version="1",
        id="7",
        parameters={"task": "pets"},
        outputs=(
            Tensor(name="a", datatype="FP32", shape=(1, 2), values=values),
            Tensor(name="b", datatype="BYTES", shape=(1, 2), values=words),
        ),
        answer=answer,
    )
    both = write_reply(reply, [True, True])
    assert both.json_bytes is not None
    record = json.loads(both.body[: both.json_bytes])
    assert [one["parameters"]["binary_data_size"] for one in record["outputs"]] == [8, 11]
    tail = both.body[both.json_bytes :]
    assert tail == values.tobytes() + b"\2\0\0\0\xc3\x9f" + b"\1\0\0\0\xff"
    plain = write_reply(reply, [False, False])
    assert plain.json_bytes is None
    assert json.loads(plain.body) == {
        "model_name": "pets",
        "model_version": "1",
        "id": "7",
        "parameters": {"task": "pets"},
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2]},
            {"name": "b", "datatype": "BYTES", "shape": [1, 2], "data": ["ß", "\ufffd"]},
        ],
    }
