"""What every call passes: tokens, limits, deadlines, the code it ends with, what is counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc

from glora_deploy.errors import NonFiniteError
from glora_deploy.serving.errors import (
    DeadlineError,
    InputError,
    LoadError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnavailableError,
    UnknownTaskError,
)
from glora_deploy.serving.grpc.server import serve_grpc
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.service import Service
from glora_deploy.serving.settings import ServerSettings
from grpc_server import ServedGrpc
from toy_engine import SIZE, ToyEngine, expected_logits, sha256_of

IMAGES = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
INFERENCE, MANAGEMENT = "asking-token", "changing-token"
SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING = 1, 2  # of health

MakeServed = Callable[[ServerSettings], ServedGrpc]


def infer(task: str = "pets", **fields: Any) -> Any:
    request = pb.ModelInferRequest(model_name=task, **fields)
    request.inputs.add(name="image", datatype="FP32", shape=IMAGES.shape)
    request.raw_input_contents.append(IMAGES.tobytes())
    return request


def code_of(call: Callable[[], Any]) -> StatusCode:
    """How a call ends."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return StatusCode.OK


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize(
    ("metadata", "asking", "changing"),
    [
        ((), StatusCode.UNAUTHENTICATED, StatusCode.UNAUTHENTICATED),
        (bearer("another-token"), StatusCode.UNAUTHENTICATED, StatusCode.UNAUTHENTICATED),
        (bearer(INFERENCE), StatusCode.OK, StatusCode.UNAUTHENTICATED),
        (bearer(MANAGEMENT), StatusCode.OK, StatusCode.OK),
    ],
)
def test_inference_and_management_need_their_own_tokens(
    make_served: MakeServed, metadata: Any, asking: StatusCode, changing: StatusCode
) -> None:
    tokens = Tokens(inference=INFERENCE, management=MANAGEMENT)
    served = make_served(ServerSettings(tokens=tokens))
    with grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        lists = reflection_pb2.ServerReflectionRequest(list_services="")
        for call in (
            lambda: stub.ModelInfer(infer(), metadata=metadata),
            lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=metadata),
            lambda: list(stub.ModelStreamInfer(iter([infer()]), metadata=metadata)),
            lambda: list(reflection.ServerReflectionInfo(iter([lists]), metadata=metadata)),
        ):
            assert code_of(call) == asking
        load = pb.RepositoryModelLoadRequest(model_name="pets")
        assert code_of(lambda: stub.RepositoryModelLoad(load, metadata=metadata)) == changing
        unload = pb.RepositoryModelUnloadRequest(model_name="digits")
        assert code_of(lambda: stub.RepositoryModelUnload(unload, metadata=metadata)) == changing
        # Probes show nothing, and have no token.
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING


def test_without_a_management_token_nobody_may_manage(make_served: MakeServed) -> None:
    served = make_served(ServerSettings(tokens=Tokens(inference=INFERENCE)))
    with grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        load = pb.RepositoryModelLoadRequest(model_name="pets")
        with pytest.raises(grpc.RpcError) as told:
            stub.RepositoryModelLoad(load, metadata=bearer(INFERENCE))
        assert told.value.code() == StatusCode.PERMISSION_DENIED
        assert "management is off" in told.value.details()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownTaskError("gone"), StatusCode.NOT_FOUND),
        (UnavailableError("gone"), StatusCode.UNAVAILABLE),
        (InputError("gone"), StatusCode.INVALID_ARGUMENT),
        (TooLargeError("gone"), StatusCode.INVALID_ARGUMENT),
        (OverloadedError("gone", 1.5), StatusCode.UNAVAILABLE),
        (DeadlineError("gone"), StatusCode.DEADLINE_EXCEEDED),
        (LoadError("gone"), StatusCode.INVALID_ARGUMENT),
        (ServingError("gone"), StatusCode.INTERNAL),
    ],
)
def test_each_error_of_the_engine_has_its_code(
    stub: Any, engine: ToyEngine, error: ServingError, code: StatusCode
) -> None:
    engine.fails_with = error
    with pytest.raises(grpc.RpcError) as told:
        stub.ModelInfer(infer(), metadata=(("x-request-id", "of-the-client"),))
    assert (told.value.code(), told.value.details()) == (code, "gone")
    metadata = dict(told.value.trailing_metadata())
    assert metadata["x-request-id"] == "of-the-client"
    pushback = "1500" if isinstance(error, OverloadedError) else None
    assert metadata.get("grpc-retry-pushback-ms") == pushback


@pytest.mark.parametrize("error", [NonFiniteError("/a/path"), ZeroDivisionError("/a/path")])
def test_what_is_our_own_fault_names_nothing_to_the_client(
    stub: Any, engine: ToyEngine, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fails_with = error
    with pytest.raises(grpc.RpcError) as told:
        stub.ModelInfer(infer(), metadata=(("x-request-id", "of-the-client"),))
    assert told.value.code() == StatusCode.INTERNAL
    assert told.value.details() == "internal error in request of-the-client; see the server's log"
    assert "/a/path" in caplog.text


def test_a_full_queue_says_when_to_come_back(stub: Any, engine: ToyEngine) -> None:
    engine.max_queue = 1
    with pytest.raises(grpc.RpcError) as told:
        stub.ModelInfer(infer())
    assert told.value.code() == StatusCode.UNAVAILABLE
    assert dict(told.value.trailing_metadata())["grpc-retry-pushback-ms"] == "2000"


def test_one_client_may_ask_so_often(make_served: MakeServed) -> None:
    served = make_served(ServerSettings(rate_per_s=0.001, rate_burst=2))
    with grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(2):
            stub.ModelInfer(infer())
        with pytest.raises(grpc.RpcError) as told:
            stub.ModelInfer(infer())
        assert told.value.code() == StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(told.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 1000
        assert stub.ServerReady(pb.ServerReadyRequest()).ready


def test_a_client_that_cancels_takes_its_request_out_of_the_queue(
    stub: Any, engine: ToyEngine, served: ServedGrpc
) -> None:
    engine.release.clear()
    waiting = stub.ModelInfer.future(infer())
    engine.wait_until(queued=2)
    waiting.cancel()
    engine.wait_until(queued=0)
    engine.release.set()
    stub.ModelInfer(infer())
    assert 'code="CANCELLED",method="ModelInfer"' in served.metrics.exposition().decode()


def test_a_stream_that_is_cancelled_takes_all_its_requests_out(
    stub: Any, engine: ToyEngine
) -> None:
    engine.release.clear()
    stream = stub.ModelStreamInfer(iter([infer(), infer("digits")]))
    engine.wait_until(queued=4)
    stream.cancel()
    engine.wait_until(queued=0)


def test_a_client_whose_deadline_passes_takes_its_request_out(stub: Any, engine: ToyEngine) -> None:
    engine.release.clear()
    soon: dict[str, Any] = {"timeout": 0.2}
    with pytest.raises(grpc.RpcError) as told:
        stub.ModelInfer(infer(), **soon)
    assert told.value.code() == StatusCode.DEADLINE_EXCEEDED
    engine.wait_until(queued=0)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_refused_however_small_it_is_packed(
    make_served: MakeServed, engine: ToyEngine, compression: grpc.Compression
) -> None:
    served = make_served(ServerSettings(limits=Limits(max_body_bytes=10_000)))
    with grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = infer()
        request.raw_input_contents.append(bytes(1 << 20))
        with pytest.raises(grpc.RpcError) as told:
            stub.ModelInfer(request, compression=compression)
        assert told.value.code() == StatusCode.RESOURCE_EXHAUSTED
        stub.ModelInfer(infer(), compression=compression)


def test_an_answer_names_its_delta_and_its_id_in_metadata(stub: Any) -> None:
    response, call = stub.ModelInfer.with_call(infer(), metadata=(("x-request-id", "mine"),))
    metadata = dict(call.initial_metadata())
    assert metadata["x-request-id"] == "mine"
    assert metadata["glora-task"] == "pets"
    assert metadata["glora-version"] == "v2"
    assert metadata["glora-delta"] == sha256_of("pets", "v2")
    logits = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(2, 3)
    np.testing.assert_array_equal(logits, expected_logits("pets", "v2", IMAGES))
    # An id that could break a log is not taken over.
    _, call = stub.ModelInfer.with_call(infer(), metadata=(("x-request-id", "two words"),))
    assert len(dict(call.initial_metadata())["x-request-id"]) == 16


def test_one_call_rolls_back(stub: Any) -> None:
    request = pb.RepositoryModelLoadRequest(model_name="pets")
    request.parameters["version"].string_param = "1"
    _, call = stub.RepositoryModelLoad.with_call(request, metadata=bearer(MANAGEMENT))
    assert dict(call.initial_metadata())["glora-version"] == "v1"
    assert stub.ModelInfer(infer()).model_version == "1"
    request = pb.RepositoryModelUnloadRequest(model_name="pets")
    request.parameters["version"].string_param = "1"
    stub.RepositoryModelUnload(request, metadata=bearer(MANAGEMENT))
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    assert [(one.name, one.version) for one in index] == [("digits", "1"), ("pets", "2")]


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("config", StatusCode.INVALID_ARGUMENT),
        ("file:1/model.onnx", StatusCode.INVALID_ARGUMENT),
        ("anything", StatusCode.INVALID_ARGUMENT),
        ("version", StatusCode.INVALID_ARGUMENT),  # a number
    ],
)
def test_a_load_takes_nothing_but_a_version(stub: Any, key: str, code: StatusCode) -> None:
    request = pb.RepositoryModelLoadRequest(model_name="pets")
    request.parameters[key].int64_param = 1
    management = bearer(MANAGEMENT)
    assert code_of(lambda: stub.RepositoryModelLoad(request, metadata=management)) == code
    request = pb.RepositoryModelLoadRequest(model_name="../pets")
    with pytest.raises(grpc.RpcError, match="task"):
        stub.RepositoryModelLoad(request, metadata=management)
    request = pb.RepositoryModelLoadRequest(model_name="pets", repository_name="other")
    unimplemented = StatusCode.UNIMPLEMENTED
    assert code_of(lambda: stub.RepositoryModelLoad(request, metadata=management)) == unimplemented


def test_what_is_not_offered_is_unimplemented(stub: Any, served: ServedGrpc) -> None:
    with pytest.raises(grpc.RpcError) as told:
        stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
    assert told.value.code() == StatusCode.UNIMPLEMENTED
    assert told.value.details() == "this server does not offer this call"


def test_calls_are_counted_by_method_task_and_code(
    stub: Any, served: ServedGrpc, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "glora_deploy.serving.access"):
        stub.ModelInfer(infer())
        list(stub.ModelStreamInfer(iter([infer(), infer("cars")])))
        assert code_of(lambda: stub.ModelInfer(infer("cars"))) == StatusCode.NOT_FOUND
    text = served.metrics.exposition().decode()
    counted = 'glora_requests_total{code="%s",method="%s",protocol="grpc",task="%s"} 1.0\n'
    for code, method, task in (
        ("OK", "ModelInfer", "pets"),
        ("OK", "ModelStreamInfer", "pets"),
        ("NOT_FOUND", "ModelInfer", "other"),
        ("NOT_FOUND", "ModelStreamInfer", "other"),
    ):
        assert counted % (code, method, task) in text
    assert 'glora_open_requests{protocol="grpc"} 0.0' in text
    assert 'glora_images_total{task="pets"} 4.0' in text
    assert "127.0.0.1" not in text
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"grpc ModelInfer /{SERVICE}/ModelInfer OK" in line for line in lines)
    assert len(lines) == 4


def test_health_is_that_of_the_engine(served: ServedGrpc, engine: ToyEngine) -> None:
    with grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            request = health_pb2.HealthCheckRequest(service=name)
            assert health.Check(request).status == SERVING
        unknown = health_pb2.HealthCheckRequest(service="another")
        assert code_of(lambda: health.Check(unknown)) == StatusCode.NOT_FOUND
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        engine.close()
        assert health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
        assert next(watched).status == NOT_SERVING
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        watched.cancel()


def test_reflection_lists_and_describes_the_service(served: ServedGrpc) -> None:
    with grpc.insecure_channel(served.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, described = stub.ServerReflectionInfo(iter(asked))
        names = {one.name for one in listed.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        assert described.file_descriptor_response.file_descriptor_proto


def test_what_comes_while_the_server_leaves_is_refused(stub: Any, served: ServedGrpc) -> None:
    stub.ModelInfer(infer())
    served.service.draining = True  # as HTTP's leave sets it
    with pytest.raises(grpc.RpcError, match="the server is leaving") as told:
        stub.ModelInfer(infer())
    assert told.value.code() == StatusCode.UNAVAILABLE
    assert not stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ServerLive(pb.ServerLiveRequest()).live


def test_an_error_in_a_stream_names_the_message_that_it_answers(stub: Any) -> None:
    sent = [infer(id="a"), infer("cars", id="b"), infer(id="c")]
    answers = list(stub.ModelStreamInfer(iter(sent)))
    assert [one.infer_response.id for one in answers] == ["a", "b", "c"]
    assert [bool(one.error_message) for one in answers] == [False, True, False]


def test_who_leaves_answers_what_has_come_and_takes_nothing_more(
    served: ServedGrpc, engine: ToyEngine
) -> None:
    engine.release.clear()
    with grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        waiting = stub.ModelInfer.future(infer())
        engine.wait_until(queued=2)
        leaving = threading.Thread(target=served.leave)
        leaving.start()
        assert next(watched).status == NOT_SERVING
        watched.cancel()
        assert code_of(lambda: stub.ModelInfer(infer())) == StatusCode.UNAVAILABLE
        engine.release.set()
        assert waiting.result().model_name == "pets"
    leaving.join()


def test_an_address_in_use_is_an_error(served: ServedGrpc, engine: ToyEngine) -> None:
    port = int(served.address.rpartition(":")[2])
    service = Service(engine, ServerSettings(grpc_port=port), served.service.telemetry)
    with pytest.raises(OSError, match="one that is in use"):
        asyncio.run(serve_grpc(service))
    service.close()
    nowhere = Service(engine, ServerSettings(), served.service.telemetry)
    with pytest.raises(ValueError, match="grpc_port must be a port"):
        asyncio.run(serve_grpc(nowhere))
    nowhere.close()
