"""What /openapi.json promises is what the server does."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel
from starlette.testclient import TestClient

from glora_deploy.serving.http import schemas
from toy_engine import SIZE

IMAGE = {
    "name": "image",
    "shape": [1, 3, SIZE, SIZE],
    "datatype": "FP32",
    "data": [0.5] * (3 * SIZE * SIZE),
}


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2", schemas.ServerMetadata),
        ("/v2/models/pets", schemas.ModelMetadata),
        ("/v2/models/pets/versions/1", schemas.ModelMetadata),
        ("/v2/models/pets/config", schemas.ModelConfig),
        ("/v2/models/stats", schemas.ModelStatistics),
        ("/v2/models/pets/stats", schemas.ModelStatistics),
        ("/v1/tasks", schemas.Tasks),
        ("/v1/tasks/pets", schemas.Task),
        ("/v1/status", schemas.Status),
    ],
)
def test_what_is_read_fits_its_schema(
    client: TestClient, path: str, model: type[BaseModel]
) -> None:
    client.post("/v2/models/pets/infer", json={"inputs": [IMAGE]})
    model.model_validate_json(client.get(path).content, strict=True)


def test_answers_fit_their_schemas(client: TestClient) -> None:
    outputs = [{"name": "logits"}, {"name": "probabilities", "parameters": {"classification": 1}}]
    body = {"id": "1", "inputs": [IMAGE], "outputs": outputs}
    answer = client.post("/v2/models/pets/infer", json=body).content
    schemas.InferAnswer.model_validate_json(answer, strict=True)
    index = client.post("/v2/repository/index").content
    schemas.RepositoryIndex.model_validate_json(index, strict=True)
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    predictions = client.post("/v1/tasks/pets/predict", content=file.getvalue()).content
    schemas.Predictions.model_validate_json(predictions, strict=True)
    for path in ("/nowhere", "/v2/models/cars"):
        schemas.Error.model_validate_json(client.get(path).content, strict=True)


def test_every_route_is_described_with_its_errors(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert ("POST", "/v2/models/{model}/versions/{version}/infer") in described
    assert ("POST", "/v1/tasks/{task}/predict") in described
    assert len(described) > 20
    ids = [operation["operationId"] for operation in described.values()]
    assert len(set(ids)) == len(ids)
    for operation in described.values():
        assert operation.get("description")
        assert {"200", "400", "404", "503"} <= set(operation["responses"])
        assert "422" not in operation["responses"]


def test_examples_of_what_is_sent_are_there(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    infer = paths["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    assert infer["application/json"]["example"]["inputs"]
    predict = paths["/v1/tasks/{task}/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    names = {one["name"] for one in predict["parameters"]}
    assert names == {"task", "version", "top_k"}


def test_every_reference_leads_somewhere(client: TestClient) -> None:
    text = client.get("/openapi.json").text
    document: dict[str, Any] = json.loads(text)
    schemes = document["components"]["securitySchemes"]
    assert schemes["inference"]["scheme"] == "bearer"
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])


def test_the_client_that_fastapi_would_load_from_elsewhere_is_not_there(client: TestClient) -> None:
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert client.get(path).status_code == 404
