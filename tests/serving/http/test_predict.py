"""Encoded images in, labels out."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from glora_deploy.data.preprocess import preprocess_batch
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.settings import ServerSettings
from toy_engine import LABELS, PREPROCESSING, ToyEngine, expected_logits, sha256_of

PREDICT = "/v1/tasks/pets/predict"


def encoded(form: str = "PNG", width: int = 11, height: int = 9) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def expected_top(data: bytes, version: str = "v2", task: str = "pets") -> list[tuple[str, float]]:
    opened = Image.open(io.BytesIO(data))
    logits = expected_logits(task, version, preprocess_batch([opened], PREPROCESSING))[0]
    powers = np.exp(logits.astype(np.float64))
    shares = powers / powers.sum()
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    return [(LABELS[task][index], round(float(shares[index]), 6)) for index in order]


def top_of(prediction: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (one["label"], pytest.approx(one["probability"], abs=2e-6)) for one in prediction["top"]
    ]


@pytest.mark.parametrize(
    ("form", "media_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("WEBP", ""),
        ("PNG", "application/octet-stream"),
    ],
)
def test_the_bytes_of_an_image_get_its_labels(
    client: TestClient, form: str, media_type: str
) -> None:
    data = encoded(form)
    response = client.post(PREDICT, content=data, headers={"content-type": media_type})
    answer = response.json()
    assert response.status_code == 200
    (prediction,) = answer["predictions"]
    assert expected_top(data) == top_of(prediction)
    assert (answer["task"], answer["version"]) == ("pets", "v2")
    assert answer["delta_sha256"] == sha256_of("pets", "v2")
    assert answer["request_id"] == response.headers["x-request-id"]
    assert response.headers["glora-task"] == "pets"
    assert response.headers["glora-version"] == "v2"
    assert response.headers["glora-delta"] == sha256_of("pets", "v2")
    assert answer["ms"]["total"] >= answer["ms"]["decode"] > 0


@pytest.mark.parametrize("version", ["1", "v1"])
def test_every_file_of_a_form_is_answered_by_the_version_asked_for(
    client: TestClient, version: str
) -> None:
    pictures = [encoded(width=width) for width in (10, 20, 30)]
    files = [("images", (f"{len(data)}.png", data)) for data in pictures]
    response = client.post(f"{PREDICT}?version={version}&top_k=2", files=files)
    answer = response.json()
    assert answer["version"] == "v1"
    assert answer["batch_size"] == 3
    for data, prediction in zip(pictures, answer["predictions"], strict=True):
        assert prediction["file"] == f"{len(data)}.png"
        assert expected_top(data, "v1")[:2] == top_of(prediction)


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"", {"content-type": "image/png"}, 400, "it is empty"),
        (b"GIF89a", {"content-type": "image/png"}, 400, "must be a whole JPEG, PNG, WEBP image"),
        (encoded()[:-30], {"content-type": "image/png"}, 400, "must be a whole"),
        (b"{}", {"content-type": "application/json"}, 415, "content-type must be image/"),
        (encoded(width=200), {"content-type": "image/png"}, 413, "at most 1,500 pixels, got 200 x"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "the form must be whole"),
        (b"x", {"content-type": "multipart/form-data; boundary=a"}, 400, "the form must"),
    ],
)
def test_what_is_no_image_is_refused(
    make_client: Any, content: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    client = make_client(ServerSettings(limits=Limits(max_pixels=1500)))
    response = client.post(PREDICT, content=content, headers=headers)
    assert (response.status_code, message in response.json()["error"]) == (status, True)


def test_a_form_holds_files_alone_and_no_more_than_a_batch(client: TestClient) -> None:
    files = [("images", ("a.png", encoded()))] * 5
    response = client.post(PREDICT, files=files)
    assert response.status_code == 400
    assert "1 to 4 files" in response.json()["error"]
    response = client.post(PREDICT, files=files[:1], data={"url": "http://127.0.0.1/x.png"})
    assert response.status_code == 400
    assert "no other field" in response.json()["error"]


def test_tasks_are_listed_with_their_versions(client: TestClient, engine: ToyEngine) -> None:
    engine.unload("digits")
    digits, pets = client.get("/v1/tasks").json()["tasks"]
    assert (digits["task"], digits["ready"], pets["ready"]) == ("digits", False, True)
    assert pets["current"] == "v2"
    assert [(one["version"], one["shown_as"]) for one in pets["versions"]] == [
        ("v1", "1"),
        ("v2", "2"),
    ]
    assert client.get("/v1/tasks/pets").json()["labels"] == list(LABELS["pets"])


def test_status_tells_what_is_held_and_what_waits(client: TestClient) -> None:
    status = client.get("/v1/status").json()
    assert (status["ready"], status["tasks"], status["versions"]) == (True, 2, 3)
    assert (status["weights_bytes"], status["budget_bytes"]) == (2000, 10_000)
    assert [(one["task"], one["version"]) for one in status["in_memory"]] == [
        ("digits", "v1"),
        ("pets", "v2"),
    ]


def test_pins_and_prefetches(client: TestClient, engine: ToyEngine) -> None:
    headers = {"authorization": "Bearer changing-token"}
    assert client.post("/v1/tasks/pets/prefetch?version=1", headers=headers).status_code == 200
    assert engine.describe("pets", "v1").in_memory
    assert client.put("/v1/tasks/pets/pin", headers=headers).status_code == 200
    assert engine.describe("pets").pinned
    assert client.delete("/v1/tasks/pets/pin", headers=headers).status_code == 200
    assert not engine.describe("pets").pinned
    assert client.post("/v1/tasks/cars/prefetch", headers=headers).status_code == 404
