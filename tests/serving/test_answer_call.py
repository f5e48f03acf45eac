"""A version that is replaced and removed while requests wait for its weights."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.settings import ServerSettings
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.serving.tasks.versions import LiveVersion
from glora_deploy.store.store import ArtifactStore
from grpc_server import serving_grpc
from http_server import serving
from marked_tasks import add_marked_task

IMAGES = np.zeros((2, 3, 32, 32), np.float32)


class Served:
    """A server whose merges of t0/v1 wait until they are told to go on."""

    def __init__(self, store: ArtifactStore, engine: StoreEngine, http: str, grpc: str) -> None:
        self.store, self.engine, self.http, self.grpc = store, engine, http, grpc
        self.merges = threading.Event()
        self.wanted = threading.Semaphore(0)

    def replace(self) -> None:
        """v2 answers for t0, and v1 is removed."""
        add_marked_task(self.store, self.store.get("colours"), "t0", mark=6, seed=6)
        self.engine.load("t0")
        self.store.remove("t0", "v1")


@pytest.fixture
def served(own_marked: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    settings = ServerSettings()
    with (
        StoreEngine(own_marked.root, EngineSettings(threads=1, watch_s=None)) as engine,
        serving(build_app(engine, settings)) as over_http,
        serving_grpc(engine, settings) as over_grpc,
    ):
        found = Served(own_marked, engine, over_http.address, over_grpc.address)
        lease, submit = engine._weights.lease, engine.submit

        def held(version: LiveVersion) -> object:
            if version.name == "t0/v1":
                found.merges.wait()
            return lease(version)

        def counted(request: Any) -> Future[Any]:
            made = submit(request)
            found.wanted.release()
            return made

        monkeypatch.setattr(engine._weights, "lease", held)
        monkeypatch.setattr(engine, "submit", counted)
        yield found
        found.merges.set()


def ask_http(served: Served, version: str = "") -> tuple[str, set[int]]:
    with triton_http.InferenceServerClient(served.http) as client:
        return answered(triton_http, client, version)


def ask_grpc(served: Served, version: str = "") -> tuple[str, set[int]]:
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        return answered(triton_grpc, client, version)


def answered(module: Any, client: Any, version: str) -> tuple[str, set[int]]:
    tensor = module.InferInput("image", [*IMAGES.shape], "FP32")
    tensor.set_data_from_numpy(IMAGES)
    result = client.infer("t0", [tensor], model_version=version)
    response = result.get_response()
    number = response["model_version"] if module is triton_http else response.model_version
    return number, set(result.as_numpy("logits").argmax(1).tolist())


def upload(served: Served, version: str = "") -> tuple[str, set[int]]:
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    connection = HTTPConnection(served.http)
    query = f"?version={version}" if version else ""
    headers = {"content-type": "image/png"}
    connection.request("POST", f"/v1/tasks/t0/predict{query}", file.getvalue(), headers)
    response = connection.getresponse()
    record = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise InferenceServerException(record["error"], str(response.status))
    return record["version"].removeprefix("v"), {record["predictions"][0]["top"][0]["index"]}


@pytest.mark.parametrize("ask", [ask_http, ask_grpc, upload])
def test_who_names_no_version_is_answered_by_the_one_that_is_current_by_then(
    served: Served, ask: Any
) -> None:
    with ThreadPoolExecutor(2) as clients:
        unnamed = clients.submit(ask, served)
        named = clients.submit(ask, served, "1")
        for _ in range(2):
            served.wanted.acquire()
        served.replace()
        served.merges.set()
        assert unnamed.result() == ("2", {6})
        with pytest.raises(InferenceServerException, match="t0/v1 cannot be served"):
            named.result()


@pytest.mark.parametrize("ask", [ask_http, ask_grpc, upload])
def test_who_names_no_version_is_refused_if_there_is_no_other(served: Served, ask: Any) -> None:
    (served.store.get("t0").path / "adapter.safetensors").unlink()
    served.merges.set()
    with pytest.raises(InferenceServerException, match="t0"):
        ask(served)
