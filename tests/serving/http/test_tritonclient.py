"""NVIDIA's own client, as it is installed, against this server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from glora_deploy.data.preprocess import preprocess_batch
from http_server import Served
from toy_engine import LABELS, PREPROCESSING, SIZE, ToyEngine, expected_logits, sha256_of

WAITS_TWO_SECONDS: dict[str, Any] = {"timeout": 2_000_000, "priority": 1}
"""Of the server, for a call: in microseconds."""
MAY_MANAGE = {"authorization": "Bearer changing-token"}


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as made:
        yield made


def images(n: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(n).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32)


def image_input(values: NDArray[np.float32], *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("image", list(values.shape), "FP32")
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def png(width: int = 11, height: int = 9) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_health_and_metadata(client: triton.InferenceServerClient, engine: ToyEngine) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.is_model_ready("pets", "1")
    assert not client.is_model_ready("cars")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("pets")["versions"] == ["1", "2"]
    assert client.get_model_config("pets", "2")["max_batch_size"] == engine.max_batch


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_inference_in_every_encoding(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool, compression: str | None
) -> None:
    values = images()
    result = client.infer(
        "pets",
        [image_input(values, binary=binary_in)],
        outputs=[triton.InferRequestedOutput("logits", binary_data=binary_out)],
        request_id="7",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_array_equal(result.as_numpy("logits"), expected_logits("pets", "v2", values))
    response = result.get_response()
    assert response["id"] == "7"
    assert response["model_version"] == "2"
    assert response["parameters"]["delta_sha256"] == sha256_of("pets", "v2")


def test_without_named_outputs_all_come_as_bytes(client: triton.InferenceServerClient) -> None:
    values = images()
    result = client.infer("pets", [image_input(values)])
    np.testing.assert_array_equal(result.as_numpy("logits"), expected_logits("pets", "v2", values))
    probabilities = cast(NDArray[np.float32], result.as_numpy("probabilities"))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)


def test_two_tasks_and_two_versions_answer_as_themselves(
    client: triton.InferenceServerClient,
) -> None:
    values = images()
    for task, version, stored in (("pets", "1", "v1"), ("pets", "", "v2"), ("digits", "1", "v1")):
        result = client.infer(task, [image_input(values)], model_version=version)
        np.testing.assert_array_equal(
            result.as_numpy("logits"), expected_logits(task, stored, values)
        )


@pytest.mark.parametrize("name", ["image_bytes", "image"])
@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_encoded_images(client: triton.InferenceServerClient, name: str, shape: list[int]) -> None:
    pictures = [png(11), png(20)]
    sent = triton.InferInput(name, shape, "BYTES")
    sent.set_data_from_numpy(np.array(pictures, object).reshape(shape))
    result = client.infer("pets", [sent])
    opened = [Image.open(io.BytesIO(data)) for data in pictures]
    expected = expected_logits("pets", "v2", preprocess_batch(opened, PREPROCESSING))
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)


@pytest.mark.parametrize("binary", [True, False])
def test_classes(client: triton.InferenceServerClient, binary: bool) -> None:
    values = images()
    wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=2)
    result = cast(Any, client.infer("pets", [image_input(values)], outputs=[wanted]))
    for row, found in zip(
        expected_logits("pets", "v2", values), result.as_numpy("logits"), strict=True
    ):
        best = sorted(range(3), key=lambda index: -row[index])[:2]
        expected = [f"{row[index]:.6f}:{index}:{LABELS['pets'][index]}" for index in best]
        assert [one.decode() if isinstance(one, bytes) else one for one in found] == expected


def test_repository_and_statistics(client: triton.InferenceServerClient, engine: ToyEngine) -> None:
    client.unload_model("pets", headers=MAY_MANAGE)
    states = {(one["name"], one["version"]): one for one in client.get_model_repository_index()}
    assert states["pets", "2"]["state"] == "UNAVAILABLE"
    assert states["pets", "2"]["reason"] == "unloaded"
    assert not client.is_model_ready("pets")
    with pytest.raises(InferenceServerException, match="not ready"):
        client.infer("pets", [image_input(images())])
    client.load_model("pets", headers=MAY_MANAGE)
    assert client.is_model_ready("pets")
    client.infer("pets", [image_input(images())])
    statistics = client.get_inference_statistics("pets", "2")["model_stats"]
    assert statistics[0]["inference_count"] == 2
    assert len(client.get_inference_statistics()["model_stats"]) == 3


def test_one_call_rolls_back_and_one_goes_forward_again(
    client: triton.InferenceServerClient,
) -> None:
    values = images()
    for version, stored in (("1", "v1"), ("v2", "v2")):
        client.load_model("pets", headers=MAY_MANAGE, query_params={"version": version})
        result = client.infer("pets", [image_input(values)])
        np.testing.assert_array_equal(
            result.as_numpy("logits"), expected_logits("pets", stored, values)
        )


def test_a_refused_version_leaves_the_old_one_serving(
    client: triton.InferenceServerClient, engine: ToyEngine
) -> None:
    engine.broken.add(("pets", "v1"))
    with pytest.raises(InferenceServerException, match="sha256 must be"):
        client.load_model("pets", headers=MAY_MANAGE, query_params={"version": "1"})
    assert client.infer("pets", [image_input(images())]).get_response()["model_version"] == "2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": "{}"}, "must come from the store alone"),
        ({"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "must come from the store alone"),
    ],
)
def test_nothing_of_a_model_can_be_uploaded(
    client: triton.InferenceServerClient, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        client.load_model("pets", headers=MAY_MANAGE, **fields)
    with pytest.raises(InferenceServerException, match="management token"):
        client.load_model("pets")


def test_async_infer_of_the_sync_client(client: triton.InferenceServerClient) -> None:
    values = [images(n) for n in (1, 2, 3)]
    waiting = [client.async_infer("pets", [image_input(one)]) for one in values]
    for one, future in zip(values, waiting, strict=True):
        np.testing.assert_array_equal(
            future.get_result().as_numpy("logits"), expected_logits("pets", "v2", one)
        )


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_the_asyncio_client(served: Served, compression: str | None) -> None:
    values = images()

    async def run() -> None:
        async with triton_aio.InferenceServerClient(served.address) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("pets", "1")
            assert (await client.get_model_metadata("pets"))["name"] == "pets"
            assert len(await client.get_model_repository_index()) == 3
            await client.unload_model("digits", headers=MAY_MANAGE)
            await client.load_model("digits", headers=MAY_MANAGE)
            result = await client.infer(
                "pets",
                [image_input(values)],
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )
            np.testing.assert_array_equal(
                result.as_numpy("logits"), expected_logits("pets", "v2", values)
            )
            with pytest.raises(InferenceServerException, match="no task cars"):
                await client.get_model_metadata("cars")

    asyncio.run(run())


def test_a_timeout_and_a_priority_reach_the_engine(
    client: triton.InferenceServerClient, engine: ToyEngine
) -> None:
    client.infer("pets", [image_input(images())], **WAITS_TWO_SECONDS)
    asked = engine.seen[-1]
    assert asked.priority == 1
    client.infer("pets", [image_input(images())])
    relaxed = engine.seen[-1]
    assert relaxed.priority == 0
    assert asked.deadline_s is not None
    assert relaxed.deadline_s is not None
    assert asked.deadline_s + 10 < relaxed.deadline_s
