"""Spans of a request, as a collector would get them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.testclient import TestClient

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.telemetry.tracing import Tracing
from toy_engine import SIZE, ToyEngine, sha256_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
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
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    made = Tracing(exporter)
    yield made
    made.close()


@pytest.fixture
def client(engine: ToyEngine, tracing: Tracing) -> Iterator[TestClient]:
    with TestClient(
        build_app(engine, tracing=tracing), "http://127.0.0.1", raise_server_exceptions=False
    ) as made:
        yield made


def test_a_request_is_a_span_with_its_steps_below(
    client: TestClient, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}
    big = [IMAGE | {"data": [[[[0.5] * SIZE] * SIZE] * 3]}]
    assert client.post("/v2/models/pets/infer", json={"inputs": big}, headers=headers).is_success
    tracing.flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"http infer", "queue", "swap", "compute"}
    root = spans.pop("http infer")
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.attributes is not None
    assert root.attributes["glora.task"] == "pets"
    assert root.attributes["glora.delta_sha256"] == sha256_of("pets", "v2")
    assert root.attributes["glora.request_id"] == "r-1"
    for span in [root, *spans.values()]:
        assert f"{span.context.trace_id:032x}" == TRACE
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
    lengths = {name: (span.end_time or 0) - (span.start_time or 0) for name, span in spans.items()}
    assert lengths == {"queue": 1000, "swap": 500, "compute": 2000}
    assert spans["queue"].end_time == spans["swap"].end_time == spans["compute"].start_time


def test_decoding_is_a_span_too(
    client: TestClient, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    client.post("/v1/tasks/pets/predict", content=b"no image")
    tracing.flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"http predict", "decode"}
    root = spans["http predict"]
    assert root.status.status_code is StatusCode.UNSET  # the client's own fault
    assert root.parent is None


def test_what_fails_is_marked(
    client: TestClient, engine: ToyEngine, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    engine.fails_with = RuntimeError("x")
    client.post("/v2/models/pets/infer", json={"inputs": [IMAGE]})
    tracing.flush()
    (root,) = [span for span in exporter.get_finished_spans() if span.name == "http infer"]
    assert root.status.status_code is StatusCode.ERROR
    assert root.status.description == "RuntimeError"


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="must be an http or https URL"):
        Tracing.to_endpoint(endpoint)
