"""Every error is ``{"error": ...}`` with the protocol's status, and the server lives on."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from typing import Any

import pytest
from starlette.testclient import TestClient

from glora_deploy.errors import NonFiniteError
from glora_deploy.serving import errors
from glora_deploy.serving.http.errors import error_response, status_of
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.rate import RateLimitError
from glora_deploy.serving.settings import ServerSettings
from toy_engine import SIZE, ToyEngine

INFER = "/v2/models/pets/infer"
N_VALUES = 3 * SIZE * SIZE
IMAGE = {"name": "image", "shape": [1, 3, SIZE, SIZE], "datatype": "FP32", "data": [0.5] * N_VALUES}


def infer_body(**fields: Any) -> dict[str, Any]:
    return {"inputs": [IMAGE]} | fields


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownTaskError("x"), 404),
        (errors.UnavailableError("x"), 503),
        (errors.InputError("x"), 400),
        (errors.TooLargeError("x"), 413),
        (errors.OverloadedError("x"), 503),
        (errors.DeadlineError("x"), 503),
        (errors.LoadError("x"), 400),
        (RateLimitError("x", 1), 429),
        (NonFiniteError("x"), 500),
        (RuntimeError("x"), 500),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    assert status_of(error) == status
    response = error_response(error, "id-1")
    assert response.status_code == status
    assert set(json.loads(bytes(response.body))) == {"error"}


def test_every_serving_error_has_a_status_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.ServingError)
        and kind is not errors.ServingError
    ]
    assert len(kinds) >= 7
    assert all(status_of(kind("x")) != 500 for kind in kinds)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "Not Found"),
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/models/pets/", 404, "Not Found"),
        ("GET", "/docs", 404, "Not Found"),
        ("PUT", "/v2", 405, "Method Not Allowed"),
        ("GET", INFER, 405, "Method Not Allowed"),
        ("GET", "/v2/models/cars", 404, "no task cars"),
        ("GET", "/v2/models/pets/versions/9", 404, "no version"),
        ("GET", "/v2/models/%2e%2e", 400, "task must be 1 to 64"),
        ("GET", "/v2/models/..%2f..%2fetc", 404, "Not Found"),
        ("GET", "/v2/models/pets%00", 400, "task must be 1 to 64"),
        ("GET", "/v2/models/pets/versions/%2e%2e", 400, "version must be 1 to 64"),
        ("GET", "/v2/models/ready", 400, "reserved word"),
        ("GET", "/v2/models/" + "x" * 65, 400, "task must be 1 to 64"),
        ("GET", "/v1/tasks/cars", 404, "no task cars"),
        ("POST", "/v1/tasks/pets/predict?top_k=0", 400, "top_k must be an integer of 1 to 1000"),
        ("POST", "/v1/tasks/pets/predict?top_k=x", 400, "top_k must be an integer"),
        ("POST", "/v1/tasks/pets/predict?version=..", 400, "version must be 1 to 64"),
    ],
)
def test_what_is_not_there_is_told_as_the_protocol_does(
    client: TestClient, method: str, path: str, status: int, message: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert response.headers["content-type"] == "application/json"
    assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"{", {}, 400, "must be JSON"),
        (b"[" * 250_000, {}, 400, "nested at most"),
        (b"{}", {"inference-header-content-length": "3"}, 400, "at most the body's 2 bytes"),
        (b"{}", {"inference-header-content-length": "9" * 99}, 400, "must be an integer"),
        (b"", {"inference-header-content-length": "0"}, 400, "must be 768 bytes"),
        (b"{}", {"content-encoding": "br"}, 501, "content-encoding must be one of"),
        (b"{}", {"content-encoding": "gzip, gzip"}, 501, "content-encoding must be one of"),
        (b"{}", {"content-encoding": "gzip"}, 400, "it is damaged"),
        (
            gzip.compress(b"{}", mtime=0)[:-9],
            {"content-encoding": "gzip"},
            400,
            "one whole gzip stream",
        ),
        (
            gzip.compress(b"{}", mtime=0) * 2,
            {"content-encoding": "gzip"},
            400,
            "one whole gzip stream",
        ),
        (zlib.compress(b"{}") + b"x", {"content-encoding": "deflate"}, 400, "one whole deflate"),
        (b"x" * 5001, {}, 413, "at most 5,000 bytes"),
        (
            gzip.compress(bytes(1 << 24), mtime=0),
            {"content-encoding": "gzip"},
            413,
            "at most 5,000 bytes",
        ),
    ],
)
def test_a_body_that_is_none_is_refused_and_the_server_lives(
    make_client: Any,
    content: bytes,
    headers: dict[str, str],
    status: int,
    message: str,
) -> None:
    big = len(content) > 5000 and status == 400
    limits = Limits(max_body_bytes=1 << 20 if big else 5000)
    client = make_client(ServerSettings(limits=limits))
    response = client.post(INFER, content=content, headers=headers)
    assert (response.status_code, message in response.json()["error"]) == (status, True)
    assert client.get("/v2/health/live").status_code == 200
    if status == 501:
        assert response.headers["accept-encoding"] == "gzip, deflate"


def test_a_body_that_never_states_its_length_is_counted(make_client: Any) -> None:
    client = make_client(ServerSettings(limits=Limits(max_body_bytes=5000)))
    response = client.post(INFER, content=(bytes(1000) for _ in range(6)))
    assert response.status_code == 413


def test_a_full_queue_says_when_to_come_back(client: TestClient, engine: ToyEngine) -> None:
    engine.max_queue = 0
    response = client.post(INFER, json=infer_body())
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json() == {"error": "the queue is full"}


def test_a_deadline_that_passes_is_told(client: TestClient, engine: ToyEngine) -> None:
    engine.late = True
    response = client.post(INFER, json=infer_body(parameters={"timeout": 1}))
    assert response.status_code == 503
    assert "deadline" in response.json()["error"]


@pytest.mark.parametrize("error", [NonFiniteError("/srv/x: NaN"), RuntimeError("/srv/x")])
def test_what_is_our_own_fault_names_no_file(
    client: TestClient, engine: ToyEngine, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fails_with = error
    with caplog.at_level(logging.ERROR):
        response = client.post(INFER, json=infer_body(), headers={"x-request-id": "r-1"})
    assert response.status_code == 500
    assert response.json() == {"error": "internal error in request r-1; see the server's log"}
    assert "/srv/x" in caplog.text
    assert "r-1" in caplog.text
    assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (infer_body(inputs=[IMAGE | {"name": "pixels"}]), "inputs must be image or image_bytes"),
        (infer_body(inputs=[IMAGE | {"shape": [1, 3, SIZE, SIZE + 1]}]), "must have 216 values"),
        (infer_body(inputs=[IMAGE | {"datatype": "FP64"}]), "must be FP32, got FP64"),
        (infer_body(inputs=[IMAGE, IMAGE]), "must get one input"),
        (infer_body(outputs=[{"name": "cat"}]), "outputs must be logits or probabilities"),
        (infer_body(parameters={"triton_x": 1}), "must not start with 'triton_'"),
        (infer_body(id="x" * 300), "id must have at most 256"),
    ],
)
def test_a_call_that_the_model_does_not_take_is_400(
    client: TestClient, body: dict[str, Any], message: str
) -> None:
    response = client.post(INFER, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"ready": 1}', b'{"parameters": 1}'])
def test_index_and_load_refuse_what_they_do_not_know(client: TestClient, content: bytes) -> None:
    headers = {"authorization": "Bearer changing-token"}
    if b"ready" not in content:
        response = client.post("/v2/repository/models/pets/load", content=content, headers=headers)
        assert response.status_code == 400
    if b"parameters" not in content:
        assert client.post("/v2/repository/index", content=content).status_code == 400


def test_a_parameter_of_load_that_is_unknown_is_refused(client: TestClient) -> None:
    headers = {"authorization": "Bearer changing-token"}
    body = {"parameters": {"path": "/etc/passwd"}}
    response = client.post("/v2/repository/models/pets/load", json=body, headers=headers)
    assert response.status_code == 400
    assert "parameters must be unload_dependents alone" in response.json()["error"]
