"""One process and two replicas speak alike: every test here runs over both, by real clients."""

from __future__ import annotations

import asyncio
import io
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
import tritonclient.http.aio as over_asyncio
from PIL import Image
from tritonclient.utils import InferenceServerException

from glora_deploy.data.preprocess import preprocess_batch
from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.store.store import ArtifactStore
from grpc_server import ServedGrpc, serving_grpc
from http_server import Served, serving
from marked_tasks import reference_logits

pytestmark = pytest.mark.filterwarnings("default")  # of Ray itself

IMAGES = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)
MANAGEMENT = "changing-token"
SETTINGS = ServerSettings(
    tokens=Tokens(management=MANAGEMENT), limits=Limits(max_body_bytes=2**20, max_wait_s=60.0)
)
TASKS = ("ants", "bees", "cats", "dogs")
ONE_MICROSECOND = {"timeout": 1}


@pytest.fixture(params=["one_process", "two_replicas"])
def engine(request: pytest.FixtureRequest) -> StoreEngine:
    found: StoreEngine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def served(engine: StoreEngine) -> Iterator[Served]:
    with serving(build_app(engine, SETTINGS)) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[over_http.InferenceServerClient]:
    with over_http.InferenceServerClient(served.address) as made:
        yield made


@pytest.fixture
def grpc_served(engine: StoreEngine) -> Iterator[ServedGrpc]:
    with serving_grpc(engine, SETTINGS) as running:
        yield running


@pytest.fixture
def grpc_client(grpc_served: ServedGrpc) -> Iterator[over_grpc.InferenceServerClient]:
    with over_grpc.InferenceServerClient(grpc_served.address) as made:
        yield made


@pytest.fixture(scope="module")
def right(scaled_store: ArtifactStore) -> dict[tuple[str, str], np.ndarray]:
    """Logits of every version by task and name, from torch alone."""
    return {
        (task, version): reference_logits(scaled_store, scaled_store.get(task, version), IMAGES)
        for task in TASKS
        for version in scaled_store.versions(task)
    }


def image_input(values: Any = IMAGES, *, of: Any = over_http, **options: Any) -> Any:
    made = of.InferInput("image", list(values.shape), "FP32")
    made.set_data_from_numpy(values, **options)
    return made


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_health_metadata_and_index(client: over_http.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ants", "1")
    assert not client.is_model_ready("zebras")
    assert client.get_model_metadata("ants")["versions"] == ["1", "2"]
    assert client.get_model_config("bees")["max_batch_size"] == 16
    states = {(e["name"], e["version"]): e["state"] for e in client.get_model_repository_index()}
    assert states == {
        **{(task, "1"): "READY" for task in (*TASKS, "colours")},
        ("ants", "2"): "READY",
    }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_inference_in_every_encoding(
    client: over_http.InferenceServerClient,
    right: dict[tuple[str, str], np.ndarray],
    binary_in: bool,
    binary_out: bool,
    compression: str | None,
) -> None:
    result = client.infer(
        "bees",
        [image_input(binary_data=binary_in)],
        outputs=[over_http.InferRequestedOutput("logits", binary_data=binary_out)],
        request_id="7",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    close(result.as_numpy("logits"), right["bees", "v1"])
    assert result.get_response()["id"] == "7"


def test_each_version_answers_as_itself(
    client: over_http.InferenceServerClient,
    grpc_client: over_grpc.InferenceServerClient,
    engine: StoreEngine,
    right: dict[tuple[str, str], np.ndarray],
) -> None:
    for task, version, stored in (("ants", "1", "v1"), ("ants", "", "v2"), ("cats", "1", "v1")):
        result = client.infer(task, [image_input()], model_version=version)
        close(result.as_numpy("logits"), right[task, stored])
        response = result.get_response()
        assert response["model_version"] == stored[1:]
        assert response["parameters"]["delta_sha256"] == engine.describe(task, stored).delta_sha256
        answer = grpc_client.infer(task, [image_input(of=over_grpc)], model_version=version)
        close(answer.as_numpy("logits"), right[task, stored])


def test_encoded_images_and_classes(
    client: over_http.InferenceServerClient,
    grpc_client: over_grpc.InferenceServerClient,
    engine: StoreEngine,
    scaled_store: ArtifactStore,
) -> None:
    file = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    opened = Image.open(io.BytesIO(file.getvalue()))
    values = preprocess_batch([opened], engine.describe("dogs").preprocessing)
    expected = reference_logits(scaled_store, scaled_store.get("dogs"), values)
    for of, asked in ((over_http, client), (over_grpc, grpc_client)):
        sent = of.InferInput("image_bytes", [1, 1], "BYTES")
        sent.set_data_from_numpy(np.array([[file.getvalue()]], object))
        close(asked.infer("dogs", [sent]).as_numpy("logits"), expected)
        wanted = of.InferRequestedOutput("logits", class_count=1)
        (best,) = asked.infer("dogs", [sent], outputs=[wanted]).as_numpy("logits")[0]
        assert best.decode().split(":")[1] == "3"


def test_errors_are_the_same(
    client: over_http.InferenceServerClient, grpc_client: over_grpc.InferenceServerClient
) -> None:
    for task, version, values, said in (
        ("zebras", "", IMAGES, "no task 'zebras'"),
        ("ants", "9", IMAGES, "no version 'v9' of task 'ants'"),
        ("ants", "", IMAGES[:, :, :16], "shape"),
        ("ants", "", np.repeat(IMAGES, 6, 0), "at most 16 images, got 18"),
    ):
        for of, asked in ((over_http, client), (over_grpc, grpc_client)):
            with pytest.raises(InferenceServerException, match=said):
                asked.infer(task, [image_input(values, of=of)], model_version=version)


def test_a_deadline_that_cannot_be_met_is_told(
    client: over_http.InferenceServerClient, engine: StoreEngine
) -> None:
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer("ants", [image_input()], **ONE_MICROSECOND)
    assert client.infer("ants", [image_input()]).as_numpy("logits").shape == (3, 8)


def test_many_calls_at_once(
    served: Served,
    grpc_client: over_grpc.InferenceServerClient,
    right: dict[tuple[str, str], np.ndarray],
) -> None:
    async def ask() -> None:
        async with over_asyncio.InferenceServerClient(served.address) as made:
            asked = [made.infer(TASKS[i % 4], [image_input()]) for i in range(24)]
            for i, result in enumerate(await asyncio.gather(*asked)):
                close(result.as_numpy("logits"), right[TASKS[i % 4], _current(TASKS[i % 4])])

    asyncio.run(ask())
    answers: queue.Queue[Any] = queue.Queue()
    grpc_client.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(8):
        sent = [image_input(of=over_grpc)]
        grpc_client.async_stream_infer(TASKS[i % 4], sent, request_id=str(i))
    for i in range(8):
        result, error = answers.get()
        assert error is None
        assert result.get_response().id == str(i)
        close(result.as_numpy("logits"), right[TASKS[i % 4], _current(TASKS[i % 4])])
    grpc_client.stop_stream()


def _current(task: str) -> str:
    return "v2" if task == "ants" else "v1"


def test_statistics_count_what_was_answered(
    client: over_http.InferenceServerClient, engine: StoreEngine
) -> None:
    def requests() -> int:
        (found,) = client.get_inference_statistics("cats", "1")["model_stats"]
        return int(found["inference_stats"]["success"]["count"])

    before = requests()
    client.infer("cats", [image_input()])
    assert requests() == before + 1


def test_management_needs_its_token(client: over_http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="token"):
        client.load_model("ants")
    client.load_model("ants", headers={"authorization": f"Bearer {MANAGEMENT}"})
    assert client.is_model_ready("ants")
