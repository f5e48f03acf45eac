"""Counts: right, bounded, and what Prometheus' own tools and the dashboard expect."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection, socket
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.settings import ServerSettings
from glora_deploy.serving.telemetry.metrics import OTHER, Metrics, TaskLabels
from toy_engine import SIZE, ToyEngine

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana-dashboard.json"
PROMTOOL = shutil.which("promtool")
IMAGE = {
    "name": "image",
    "shape": [2, 3, SIZE, SIZE],
    "datatype": "FP32",
    "data": [0.5] * (2 * 3 * SIZE * SIZE),
}


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.close()


@pytest.fixture
def client(engine: ToyEngine) -> Iterator[TestClient]:
    with TestClient(
        build_app(engine, ServerSettings(max_task_labels=1)), "http://127.0.0.1"
    ) as made:
        yield made


def counts(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample by its name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def infer(client: TestClient, task: str, **fields: Any) -> None:
    client.post(f"/v2/models/{task}/infer", json={"inputs": [IMAGE]} | fields)


def test_requests_images_and_batches_are_counted(client: TestClient) -> None:
    infer(client, "pets")
    infer(client, "pets")
    infer(client, "pets", outputs=[{"name": "cat"}])
    found = counts(client.get("/metrics").text)
    infers = {
        labels["code"]: value
        for labels, value in found["glora_requests_total"]
        if labels["method"] == "infer"
    }
    assert infers == {"200": 2, "400": 1}
    assert found["glora_images_total"] == [({"task": "pets"}, 4)]
    assert found["glora_batch_size_images_count"] == [({"task": "pets"}, 2)]
    assert found["glora_batch_size_images_sum"] == [({"task": "pets"}, 4)]
    steps = {labels["step"]: value for labels, value in found["glora_step_duration_seconds_count"]}
    assert steps == {"queue": 2, "swap": 2, "compute": 2}
    assert found["glora_swaps_total"] == [({}, 3)]
    assert found["glora_merge_seconds_total"] == [({}, pytest.approx(0.007))]
    assert found["glora_weights_cache_hits_total"] == [({"task": "pets"}, 2)]
    assert found["glora_weights_bytes"] == [({}, 2000)]
    assert found["glora_received_bytes_total"][0][1] > 3 * 384
    # The scrape itself is the one that is open.
    assert found["glora_open_requests"] == [({"protocol": "http"}, 1)]


def test_names_that_clients_make_up_make_no_series(client: TestClient) -> None:
    infer(client, "pets")
    infer(client, "digits")
    for number in range(50):
        client.get(f"/v2/models/made-up-{number}")
        client.get(f"/made/up/{number}")
    text = client.get("/metrics").text
    tasks = {
        labels["task"]
        for samples in counts(text).values()
        for labels, _ in samples
        if "task" in labels
    }
    assert tasks == {"", "pets", OTHER}
    assert "made" not in text


def test_the_first_tasks_asked_for_have_labels_of_their_own() -> None:
    known = {f"t{number}" for number in range(10)}
    labels = TaskLabels(lambda: known, 3)
    assert [labels.label(task) for task in ("t5", "nobody", "t1", "t9", "t2", "t5", "")] == [
        "t5", OTHER, "t1", "t9", OTHER, "t5", "",
    ]  # fmt: skip


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend(client: TestClient) -> None:
    infer(client, "pets")
    text = client.get("/metrics").content
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_metric_that_the_dashboard_asks_for_is_there(client: TestClient) -> None:
    infer(client, "pets")
    found = set(counts(client.get("/metrics").text))
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in dashboard["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"\bglora_\w+", query)}
    assert len(asked) > 20
    # Counts of the engine that are zero for every task have no series yet.
    silent = {"glora_rejected_requests_total", "glora_cancelled_requests_total",
              "glora_failed_requests_total", "glora_weights_cache_misses_total"}  # fmt: skip
    assert asked - found <= silent
    families = {
        family.name for family in text_string_to_metric_families(client.get("/metrics").text)
    }
    assert {name.removesuffix("_total") for name in silent} <= families


def test_the_dashboard_gives_each_panel_a_place_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_metrics_may_have_a_port_of_their_own(engine: ToyEngine) -> None:
    metrics = Metrics(engine, max_tasks=1, version="1")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = metrics.serve("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"glora_ready 1.0" in response.read()
    end()
    app = build_app(engine, ServerSettings(metrics_port=port))
    with TestClient(app, "http://127.0.0.1") as client:
        assert client.get("/metrics").status_code == 404


def test_who_is_silent_at_that_port_holds_no_thread(
    engine: ToyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora_deploy.serving.telemetry.metrics._SCRAPE_S", 0.1)
    metrics = Metrics(engine, max_tasks=1, version="1")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = metrics.serve("127.0.0.1", port)
    try:
        with create_connection(("127.0.0.1", port)) as silent:
            silent.settimeout(30)  # against hanging alone
            assert silent.recv(1) == b""
    finally:
        end()
