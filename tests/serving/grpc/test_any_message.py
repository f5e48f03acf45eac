"""Whatever bytes come as a message, the answer blames them, and the server goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings, strategies as st
from tritonclient.grpc import service_pb2 as pb

from glora_deploy.serving.grpc.gate import HEALTH, MANAGED, REFLECTION, SERVICE
from grpc_server import ServedGrpc, serving_grpc
from toy_engine import SIZE, ToyEngine

OURS = {StatusCode.INTERNAL, StatusCode.UNKNOWN}
_METHODS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
UNARY = [
    path
    for name in _METHODS
    if (path := f"/{SERVICE}/{name}") not in MANAGED and name != "ModelStreamInfer"
] + [f"/{HEALTH}/Check"]
STREAMS = [f"/{SERVICE}/ModelStreamInfer", f"/{REFLECTION}/ServerReflectionInfo"]


@pytest.fixture(scope="module")
def served() -> Iterator[ServedGrpc]:
    engine = ToyEngine()
    with serving_grpc(engine) as running:
        yield running
    engine.close()


@pytest.fixture(scope="module")
def channel(served: ServedGrpc) -> Iterator[Any]:
    with grpc.insecure_channel(served.address) as opened:
        yield opened


def infer(draw: st.DrawFn) -> bytes:
    """A call that is nearly right."""
    request = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["pets", "pets", "cars", "../x", ""])),
        model_version=draw(st.sampled_from(["", "", "1", "9", ".."])),
        id=draw(st.text(max_size=9)),
    )
    for _ in range(draw(st.integers(0, 2))):
        tensor = request.inputs.add(
            name=draw(st.sampled_from(["image", "image_bytes", "x"])),
            datatype=draw(st.sampled_from(["FP32", "BYTES", "INT8", "FP16", "", "FP1"])),
            shape=draw(
                st.just([1, 3, SIZE, SIZE]) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
            ),
        )
        match draw(st.integers(0, 4)):
            case 0:
                tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32))))
            case 1:
                tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=9))))
            case 2:
                request.raw_input_contents.append(draw(st.binary(max_size=64)))
            case 3:
                request.raw_input_contents.append(b"\0" * 4 * 3 * SIZE * SIZE)
    for key in draw(st.lists(st.sampled_from(["priority", "timeout", "triton_x", "k"]))):
        parameter = request.parameters[key]
        match draw(st.integers(0, 3)):
            case 0:
                parameter.int64_param = draw(st.integers(-(2**63), 2**63 - 1))
            case 1:
                parameter.string_param = draw(st.text(max_size=9))
            case 2:
                parameter.double_param = draw(st.floats())
    for _ in range(draw(st.integers(0, 2))):
        output = request.outputs.add(name=draw(st.sampled_from(["logits", "probabilities", "y"])))
        if draw(st.booleans()):
            output.parameters["classification"].int64_param = draw(st.integers(-2, 2**40))
    return request.SerializeToString()


MESSAGES = st.binary(max_size=64) | st.composite(infer)()
QUICK = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def code_of(call: Any) -> StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return StatusCode.OK


@QUICK
@given(path=st.sampled_from([*UNARY, *[f"/{SERVICE}/ModelInfer"] * 20]), message=MESSAGES)
def test_no_message_is_our_own_fault(
    channel: Any, caplog: pytest.LogCaptureFixture, path: str, message: bytes
) -> None:
    call = channel.unary_unary(path)
    assert code_of(lambda: call(message)) not in OURS
    assert not [record for record in caplog.records if record.exc_info]


@QUICK
@given(path=st.sampled_from(STREAMS), messages=st.lists(MESSAGES, max_size=3))
def test_nor_is_one_of_a_stream(
    channel: Any, caplog: pytest.LogCaptureFixture, path: str, messages: list[bytes]
) -> None:
    call = channel.stream_stream(path)
    assert code_of(lambda: list(call(iter(messages)))) not in OURS
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", [f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ServerLive"])
def test_what_is_no_message_is_told_so(channel: Any, path: str) -> None:
    with pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(path)(b"\xff\xff")
    assert told.value.code() == StatusCode.INVALID_ARGUMENT
    assert "must be of the type that this call takes" in told.value.details()
