"""A call of one model, from its tensors to its outputs."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from glora_deploy.data.preprocess import preprocess_batch
from glora_deploy.serving.errors import (
    InputError,
    TooLargeError,
    UnavailableError,
    UnknownTaskError,
)
from glora_deploy.serving.protocol.infer import InferReply, plan_call, to_images, to_reply
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.protocol.tensors import (
    InferCall,
    RequestedOutput,
    Tensor,
    from_values,
    object_array,
)
from toy_engine import LABELS, PREPROCESSING, SIZE, ToyEngine, expected_logits, sha256_of

LIMITS = Limits(max_pixels=10_000, max_image_bytes=100_000, max_wait_s=20)


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.close()


def images(n: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(n).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32)


def call(values: NDArray[np.float32] | None = None, **fields: Any) -> InferCall:
    values = images() if values is None else values
    tensor = Tensor(name="image", datatype="FP32", shape=values.shape, values=values)
    return InferCall(**({"model": "pets", "inputs": (tensor,)} | fields))


def encoded(*pictures: bytes, name: str = "image_bytes") -> Tensor:
    return Tensor(
        name=name, datatype="BYTES", shape=(len(pictures),), values=object_array(pictures)
    )


def png(width: int = 11, height: int = 9) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def answer(engine: ToyEngine, asked: InferCall) -> InferReply:
    plan = plan_call(engine, asked, LIMITS, 0.0)
    return to_reply(engine, plan, engine.submit(plan.request(to_images(plan, LIMITS))).result())


def test_every_output_is_given_where_none_is_named(engine: ToyEngine) -> None:
    values = images()
    reply = answer(engine, call(values, id="7"))
    logits, probabilities = reply.outputs
    assert (logits.name, logits.datatype, logits.shape) == ("logits", "FP32", (2, 3))
    np.testing.assert_array_equal(logits.values, expected_logits("pets", "v2", values))
    powers = np.exp(logits.values.astype(np.float64))
    np.testing.assert_allclose(
        probabilities.values, powers / powers.sum(1, keepdims=True), rtol=1e-6
    )
    assert (reply.model, reply.version, reply.id) == ("pets", "2", "7")
    assert reply.parameters["delta_sha256"] == sha256_of("pets", "v2")
    assert (reply.parameters["task"], reply.parameters["version"]) == ("pets", "v2")


@pytest.mark.parametrize("version", ["1", "v1"])
def test_a_version_is_asked_for_by_its_digits_or_its_stored_name(
    engine: ToyEngine, version: str
) -> None:
    values = images()
    reply = answer(engine, call(values, version=version))
    assert reply.version == "1"
    np.testing.assert_array_equal(reply.outputs[0].values, expected_logits("pets", "v1", values))


def test_encoded_images_are_preprocessed_as_the_version_says(engine: ToyEngine) -> None:
    pictures = [png(11, 9), png(20, 13)]
    opened = [Image.open(io.BytesIO(data)) for data in pictures]
    expected = expected_logits("pets", "v2", preprocess_batch(opened, PREPROCESSING))
    for tensor in (encoded(*pictures), encoded(*pictures, name="image")):
        reply = answer(engine, call(inputs=(tensor,)))
        np.testing.assert_array_equal(reply.outputs[0].values, expected)


def test_classes_are_the_best_first_with_their_labels(engine: ToyEngine) -> None:
    values = images()
    wanted = RequestedOutput(name="logits", classification=2)
    (output,) = answer(engine, call(values, outputs=(wanted,))).outputs
    assert (output.datatype, output.shape) == ("BYTES", (2, 2))
    for row, strings in zip(expected_logits("pets", "v2", values), output.values, strict=True):
        best = sorted(range(3), key=lambda index: -row[index])[:2]
        assert list(strings) == [
            f"{row[index]:.6f}:{index}:{LABELS['pets'][index]}".encode() for index in best
        ]


def test_more_classes_than_there_are_gives_all(engine: ToyEngine) -> None:
    wanted = RequestedOutput(name="probabilities", classification=99)
    (output,) = answer(engine, call(outputs=(wanted,))).outputs
    assert output.shape == (2, 3)


@pytest.mark.parametrize(
    ("timeout_us", "deadline_s"), [(None, 120), (5_000_000, 105), (2**62, 120), (0, 120)]
)
def test_a_deadline_is_the_clients_up_to_the_servers_longest(
    engine: ToyEngine, timeout_us: int | None, deadline_s: float
) -> None:
    parameters = {} if timeout_us is None else {"timeout": timeout_us}
    plan = plan_call(engine, call(parameters=parameters), LIMITS, 100.0)
    assert plan.deadline_s == deadline_s


def test_a_version_that_was_taken_out_does_not_answer(engine: ToyEngine) -> None:
    engine.unload("pets", "v1")
    with pytest.raises(UnavailableError, match="version v1 is not ready: unloaded"):
        plan_call(engine, call(version="1"), LIMITS, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "../1"}, "version must be 1 to 64"),
        ({"model": "../etc"}, "task must be 1 to 64"),
        ({"model": "stats"}, "reserved word"),
        ({"id": "x" * 257}, "id must have at most 256"),
        ({"inputs": ()}, "must get one input"),
        ({"inputs": (encoded(b"a"), encoded(b"a"))}, "must get one input, .*got 2"),
        ({"inputs": (encoded(b"a", name="pixels"),)}, "inputs must be image or image_bytes"),
        ({"inputs": (from_values("image", "FP64", [1], [1]),)}, "must be FP32, got FP64"),
        ({"inputs": (from_values("image_bytes", "FP32", [1], [1]),)}, "must be BYTES, got FP32"),
        ({"inputs": (from_values("image", "FP32", [1], [1]),)}, r"shape \[-1, 3, 8, 8\]"),
        ({"inputs": (from_values("image", "FP32", [0, 3, 8, 8], []),)}, "at least one image"),
        ({"inputs": (from_values("image", "BYTES", [1, 2], ["a", "b"]),)}, r"\[n\] or \[n, 1\]"),
        ({"outputs": (RequestedOutput(name="cat"),)}, "outputs must be logits or probabilities"),
        ({"outputs": (RequestedOutput(name="logits"),) * 2}, "asked for once"),
        ({"parameters": {"timeout": "soon"}}, "timeout must be an integer"),
        ({"parameters": {"timeout": True}}, "timeout must be an integer"),
        ({"parameters": {"priority": -1}}, "priority must be an integer"),
        ({"parameters": {"triton_enable_empty_final_response": True}}, "start with 'triton_'"),
    ],
)
def test_what_this_model_does_not_take_is_refused(
    engine: ToyEngine, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan_call(engine, call(**fields), LIMITS, 0)


def test_an_unknown_model_or_version_is_told_apart_from_a_wrong_call(engine: ToyEngine) -> None:
    for fields in ({"model": "cars"}, {"version": "9"}, {"version": "beta"}):
        with pytest.raises(UnknownTaskError):
            plan_call(engine, call(**fields), LIMITS, 0)


def test_more_images_than_a_batch_holds_are_too_many(engine: ToyEngine) -> None:
    with pytest.raises(InputError, match="at most 4 images, got 5"):
        plan_call(engine, call(images(5)), LIMITS, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(engine: ToyEngine, value: float) -> None:
    values = images()
    values[1, 2, 3, 4] = value
    with pytest.raises(InputError, match="must be finite"):
        to_images(plan_call(engine, call(values), LIMITS, 0), LIMITS)


@pytest.mark.parametrize(
    ("picture", "kind", "message"),
    [
        (png(101, 100), TooLargeError, "image 1: must have at most 10,000 pixels, got 101 x 100"),
        (png() + bytes(100_000), TooLargeError, "image 1: must have at most 100,000 bytes"),
        (b"GIF89a", InputError, "image 1: must be a whole JPEG, PNG, WEBP image"),
        (png()[:-60], InputError, "image 1: must be a whole .*decoding it failed"),
        (b"", InputError, "image 1"),
    ],
)
def test_an_image_that_cannot_be_taken_is_named(
    engine: ToyEngine, picture: bytes, kind: type[Exception], message: str
) -> None:
    plan = plan_call(engine, call(inputs=(encoded(png(), picture),)), LIMITS, 0)
    with pytest.raises(kind, match=message):
        to_images(plan, LIMITS)


def test_a_bomb_is_refused_by_its_header_alone(engine: ToyEngine) -> None:
    header = bytearray(png())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    plan = plan_call(engine, call(inputs=(encoded(bytes(header)),)), LIMITS, 0)
    with pytest.raises(TooLargeError, match="pixels"):
        to_images(plan, LIMITS)
