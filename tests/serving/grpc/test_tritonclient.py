"""NVIDIA's own client for gRPC, as it is installed, against this server."""

from __future__ import annotations

import asyncio
import io
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from glora_deploy.data.preprocess import preprocess_batch
from grpc_server import ServedGrpc
from toy_engine import LABELS, PREPROCESSING, SIZE, ToyEngine, expected_logits, sha256_of

MAY_MANAGE = {"authorization": "Bearer changing-token"}


@pytest.fixture
def client(served: ServedGrpc) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as made:
        yield made


def images(n: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(n).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32)


def image_input(values: NDArray[np.float32]) -> triton.InferInput:
    made = triton.InferInput("image", list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return made


def png(width: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 255, (9, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def require_logits(
    result: triton.InferResult, values: NDArray[np.float32], task: str = "pets", version: str = "v2"
) -> None:
    np.testing.assert_array_equal(result.as_numpy("logits"), expected_logits(task, version, values))


def test_health_and_metadata(client: triton.InferenceServerClient, engine: ToyEngine) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.is_model_ready("pets", "1")
    assert not client.is_model_ready("cars")
    assert not client.is_model_ready("pets", "9")
    assert "classification" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("pets")
    assert list(metadata.versions) == ["1", "2"]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("image", "FP32", [-1, 3, SIZE, SIZE]),
        ("image_bytes", "BYTES", [-1, 1]),
    ]
    config = client.get_model_config("pets", "2").config
    assert config.max_batch_size == engine.max_batch
    assert config.parameters["adapter_sha256"].string_value == sha256_of("pets", "v2")
    assert list(config.output[0].dims) == [3]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_inference_in_every_compression(
    client: triton.InferenceServerClient, compression: str | None
) -> None:
    values = images()
    result = client.infer(
        "pets",
        [image_input(values)],
        outputs=[triton.InferRequestedOutput("logits")],
        request_id="7",
        compression_algorithm=compression,
    )
    require_logits(result, values)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", "pets", "2")
    assert response.parameters["delta_sha256"].string_param == sha256_of("pets", "v2")
    assert response.parameters["batch_size"].int64_param == 2
    assert [one.name for one in response.outputs] == ["logits"]


def test_without_named_outputs_all_come(client: triton.InferenceServerClient) -> None:
    values = images()
    result = client.infer("pets", [image_input(values)])
    require_logits(result, values)
    probabilities = cast(NDArray[np.float32], result.as_numpy("probabilities"))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)


def test_two_tasks_and_two_versions_answer_as_themselves(
    client: triton.InferenceServerClient,
) -> None:
    values = images()
    for task, version, stored in (("pets", "1", "v1"), ("pets", "", "v2"), ("digits", "1", "v1")):
        result = client.infer(task, [image_input(values)], model_version=version)
        require_logits(result, values, task, stored)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_encoded_images(client: triton.InferenceServerClient, shape: list[int]) -> None:
    pictures = [png(11), png(20)]
    sent = triton.InferInput("image_bytes", shape, "BYTES")
    sent.set_data_from_numpy(np.array(pictures, object).reshape(shape))
    result = client.infer("pets", [sent])
    opened = [Image.open(io.BytesIO(data)) for data in pictures]
    require_logits(result, preprocess_batch(opened, PREPROCESSING))


def test_classes(client: triton.InferenceServerClient) -> None:
    values = images()
    wanted = triton.InferRequestedOutput("logits", class_count=2)
    result = cast(Any, client.infer("pets", [image_input(values)], outputs=[wanted]))
    for row, found in zip(
        expected_logits("pets", "v2", values), result.as_numpy("logits"), strict=True
    ):
        best = sorted(range(3), key=lambda index: -row[index])[:2]
        expected = [f"{row[index]:.6f}:{index}:{LABELS['pets'][index]}" for index in best]
        assert [one.decode() for one in found] == expected


def test_repository_and_statistics(client: triton.InferenceServerClient) -> None:
    client.unload_model("pets", headers=MAY_MANAGE)
    index = client.get_model_repository_index().models
    states = {(one.name, one.version): (one.state, one.reason) for one in index}
    assert states["pets", "2"] == ("UNAVAILABLE", "unloaded")
    assert states["digits", "1"] == ("READY", "")
    assert not client.is_model_ready("pets")
    with pytest.raises(InferenceServerException, match="not ready") as told:
        client.infer("pets", [image_input(images())])
    assert told.value.status() == "StatusCode.UNAVAILABLE"
    client.load_model("pets", headers=MAY_MANAGE)
    assert client.is_model_ready("pets")
    client.infer("pets", [image_input(images())])
    (statistics,) = client.get_inference_statistics("pets", "2").model_stats
    assert statistics.inference_count == 2
    assert statistics.inference_stats.success.count == 1
    assert [batch.batch_size for batch in statistics.batch_stats] == [2]
    assert len(client.get_inference_statistics().model_stats) == 3


def test_a_refused_version_leaves_the_old_one_serving(
    client: triton.InferenceServerClient, engine: ToyEngine
) -> None:
    engine.broken.add(("pets", "v2"))
    with pytest.raises(InferenceServerException, match="sha256 must be") as told:
        client.load_model("pets", headers=MAY_MANAGE)
    assert told.value.status() == "StatusCode.INVALID_ARGUMENT"
    values = images()
    require_logits(client.infer("pets", [image_input(values)]), values)


@pytest.mark.parametrize("files", [None, {"file:1/model.onnx": b"x"}])
def test_nothing_of_a_model_can_be_uploaded(
    client: triton.InferenceServerClient, files: dict[str, bytes] | None
) -> None:
    with pytest.raises(InferenceServerException, match="must come from the store alone"):
        client.load_model("pets", headers=MAY_MANAGE, config="{}", files=files)


def test_async_infer_of_the_sync_client(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    values = images()
    client.async_infer(
        "pets", [image_input(values)], callback=lambda result, error: answers.put((result, error))
    )
    result, error = answers.get()
    assert error is None
    require_logits(result, values)


def test_a_stream_answers_in_order_and_an_error_ends_only_its_own_call(
    client: triton.InferenceServerClient, engine: ToyEngine
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    sent = [images(n) for n in (1, 2, 3)]
    for values in sent:
        client.async_stream_infer("pets", [image_input(values)], request_id=str(len(values)))
    client.async_stream_infer("cars", [image_input(sent[0])], request_id="unknown")
    client.async_stream_infer("digits", [image_input(sent[1])], enable_empty_final_response=True)
    for values in sent:
        result, error = answers.get()
        assert error is None
        require_logits(result, values)
        assert result.get_response().id == str(len(values))
        assert result.get_response().parameters["triton_final_response"].bool_param
    result, error = answers.get()
    assert result is None
    assert "no task cars" in str(error)
    result, error = answers.get()
    require_logits(result, sent[1], "digits", "v1")
    client.stop_stream()


def test_a_timeout_and_a_priority_reach_the_engine(
    client: triton.InferenceServerClient, engine: ToyEngine
) -> None:
    waits_two_seconds: dict[str, Any] = {"timeout": 2_000_000, "priority": 1}
    client.infer("pets", [image_input(images())], **waits_two_seconds)
    client.infer("pets", [image_input(images())])
    asked, relaxed = engine.seen[-2:]
    assert (asked.priority, relaxed.priority) == (1, 0)
    assert asked.deadline_s is not None
    assert relaxed.deadline_s is not None
    assert asked.deadline_s + 10 < relaxed.deadline_s


def test_the_deadline_of_a_call_is_that_of_its_request(
    client: triton.InferenceServerClient, engine: ToyEngine
) -> None:
    ends_in_ten_seconds: dict[str, Any] = {"client_timeout": 10.0}
    client.infer("pets", [image_input(images())], **ends_in_ten_seconds)
    client.infer("pets", [image_input(images())])
    asked, relaxed = engine.seen[-2:]
    assert asked.deadline_s is not None
    assert relaxed.deadline_s is not None
    assert asked.deadline_s + 10 < relaxed.deadline_s


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_the_asyncio_client(served: ServedGrpc, compression: str | None) -> None:
    values = images()

    async def calls() -> AsyncIterator[dict[str, Any]]:
        for task in ("pets", "digits"):
            yield {"model_name": task, "inputs": [image_input(values)]}

    async def run() -> None:
        async with triton_aio.InferenceServerClient(served.address) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("pets", "1")
            assert (await client.get_model_metadata("pets")).name == "pets"
            assert len((await client.get_model_repository_index()).models) == 3
            await client.unload_model("digits", headers=MAY_MANAGE)
            await client.load_model("digits", headers=MAY_MANAGE)
            result = await client.infer(
                "pets", [image_input(values)], compression_algorithm=compression
            )
            require_logits(result, values)
            with pytest.raises(InferenceServerException, match="no task cars"):
                await client.get_model_metadata("cars")
            stream = client.stream_infer(calls())
            streamed = [result async for result, error in stream if error is None]
            require_logits(streamed[0], values)
            require_logits(streamed[1], values, "digits", "v1")

    asyncio.run(run())
