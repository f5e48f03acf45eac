"""One line for each request."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.telemetry.access_log import JsonFormatter, access
from toy_engine import SIZE, ToyEngine, sha256_of

IMAGE = {
    "name": "image",
    "shape": [1, 3, SIZE, SIZE],
    "datatype": "FP32",
    "data": [0.5] * (3 * SIZE * SIZE),
}


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.close()


@pytest.fixture
def client(engine: ToyEngine) -> Iterator[TestClient]:
    with TestClient(build_app(engine), "http://127.0.0.1", raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    before = access.level
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    yield stream
    access.removeHandler(handler)
    access.setLevel(before)


def test_a_line_of_text_says_who_answered(client: TestClient, lines: io.StringIO) -> None:
    client.post("/v2/models/pets/infer", json={"inputs": [IMAGE]}, headers={"x-request-id": "r-1"})
    (line,) = lines.getvalue().splitlines()
    assert line.startswith("r-1 http infer POST /v2/models/pets/infer 200 ")
    assert line.endswith(" ms by pets/v2")


def test_a_line_of_json_has_a_field_for_each_thing(client: TestClient, lines: io.StringIO) -> None:
    access.handlers[-1].setFormatter(JsonFormatter())
    body = {"id": "call-7", "inputs": [IMAGE]}
    client.post("/v2/models/pets/infer", json=body, headers={"x-request-id": "r-1"})
    client.get("/v2/models/cars")
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert first["request_id"] == "r-1"
    assert (first["method"], first["status"]) == ("infer", "200")
    assert (first["task"], first["version"]) == ("pets", "v2")
    assert first["delta_sha256"] == sha256_of("pets", "v2")
    assert first["call_id"] == "call-7"
    assert (first["images"], first["batch_size"]) == (1, 1)
    assert first["duration_ms"] > 0
    assert {"queue_ms", "swap_ms", "compute_ms", "time", "level", "client"} <= set(first)
    assert (second["status"], second["error"]) == ("404", "no task cars is served")


def test_nothing_that_a_client_sends_starts_a_line(client: TestClient, lines: io.StringIO) -> None:
    client.get("/v2/models/a%0a2026%20INFO%20forged%1b[31m")
    client.get("/%e2%80%a8x")
    assert len(lines.getvalue().splitlines()) == 2
    assert "\x1b" not in lines.getvalue()


def test_no_token_is_ever_written(client: TestClient, lines: io.StringIO) -> None:
    access.handlers[-1].setFormatter(JsonFormatter())
    client.get("/v2", headers={"authorization": "Bearer secret-token"})
    assert "secret-token" not in lines.getvalue()
