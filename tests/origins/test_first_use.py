"""Tasks that are fetched when they are first asked for: the fetcher, the engine, the program."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from calls_http import IMAGES, listed
from glora_deploy.errors import NotInStoreError, OriginError, StoreError
from glora_deploy.export.pipeline import export
from glora_deploy.origins.fetch import Fetcher
from glora_deploy.origins.publish import publish
from glora_deploy.serving import first_use
from glora_deploy.serving.errors import UnavailableError
from glora_deploy.serving.first_use import NOT_HERE, FirstUse
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.store import ArtifactStore
from marked_tasks import reference_logits
from object_server import ONNX, ROOM, Origin
from server_program import running

SETTINGS = EngineSettings(threads=1, watch_s=0.05)


def follow(origin: Origin, cache: Path, budget_bytes: int = ROOM) -> Fetcher:
    made = Fetcher(origin.bucket(), ArtifactStore.create(cache), budget_bytes, on_demand=True)
    assert made.look()
    return made


@pytest.fixture
def published(store: ArtifactStore, origin: Origin) -> ArtifactStore:
    """``pets`` (v1 current) and ``cars`` at the origin."""
    for task, version in (("pets", "v2"), ("pets", "v1"), ("cars", "v1")):
        publish(store, origin.bucket(), task, version)
    return store


def downloads(origin: Origin) -> list[str]:
    return [r for r in origin.objects.requests if r.startswith("GET") and "index.json" not in r]


def test_nothing_is_fetched_before_it_is_asked_for(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    fetcher = follow(origin, tmp_path / "cache")
    assert fetcher.offered() == {"cars": "v1", "pets": "v1"}
    assert downloads(origin) == []
    assert fetcher.store.tasks() == []
    fetcher.fetch("cars")
    assert fetcher.store.tasks() == ["cars"]
    assert fetcher.store.verify() == []
    assert {r.split("/")[3] for r in downloads(origin)} == {"tasks", "backbones"}
    assert not any("pets" in request for request in downloads(origin))
    with pytest.raises(NotInStoreError, match="has no task 'zebras'"):
        fetcher.fetch("zebras")


def test_a_task_that_is_here_follows_and_others_do_not(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    fetcher = follow(origin, tmp_path / "cache")
    fetcher.fetch("pets")
    publish(published, origin.bucket(), "pets", "v2")
    assert fetcher.look()
    assert fetcher.store.current("pets") == "v2"
    assert fetcher.store.tasks() == ["pets"]


def test_many_who_ask_at_once_share_one_fetch(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    fetcher = follow(origin, tmp_path / "cache")
    threads = [
        threading.Thread(target=fetcher.fetch, args=(task,)) for task in ("pets", "cars") * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetcher.store.verify() == []
    assert fetcher.n_fetched == 2
    asked = downloads(origin)
    assert len(asked) == len(set(asked))  # the backbone too came once


def test_the_least_recently_used_leave_for_others(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    fetcher = follow(origin, tmp_path / "cache")
    fetcher.let_go = lambda task: True
    fetcher.fetch("pets")
    fetcher.fetch("cars")
    fetcher.budget_bytes = fetcher.cache_bytes + 4096  # two tasks of this size, not three
    fetcher.note_use("pets")
    made = published.get("cars")
    published.put("dogs", made.tensors(), made.manifest)
    assert export(published, published.get("dogs"), ONNX).report.passed
    publish(published, origin.bucket(), "dogs")
    assert fetcher.look()
    fetcher.fetch("dogs")
    assert fetcher.store.tasks() == ["dogs", "pets"]
    assert fetcher.cache_bytes <= fetcher.budget_bytes
    assert not fetcher.holds("cars")
    fetcher.fetch("cars")
    assert fetcher.store.tasks() == ["cars", "dogs"]
    assert fetcher.store.verify() == []


def test_a_task_that_is_used_stays_beyond_the_budget(
    published: ArtifactStore, origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetcher = follow(origin, tmp_path / "cache", budget_bytes=1)
    asked: list[str] = []
    fetcher.let_go = lambda task: bool(asked.append(task))
    fetcher.fetch("pets")
    fetcher.fetch("cars")
    assert fetcher.store.tasks() == ["cars", "pets"]
    assert asked == ["pets"]
    assert caplog.text.count("more than the budget of 1") == 1


class TestFirstUse:
    """Between a source and an engine."""

    @pytest.fixture
    def parts(
        self, published: ArtifactStore, origin: Origin, tmp_path: Path
    ) -> Iterator[tuple[Fetcher, StoreEngine, FirstUse]]:
        fetcher = follow(origin, tmp_path / "cache")
        with StoreEngine(fetcher.store.root, SETTINGS) as engine:
            brings = FirstUse(engine, fetcher)
            yield fetcher, engine, brings
            brings.close()

    def test_a_task_comes_leaves_and_comes_again(
        self,
        parts: tuple[Fetcher, StoreEngine, FirstUse],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fetcher, engine, brings = parts
        assert brings.absent() == {"cars": "v1", "pets": "v1"}
        asyncio.run(brings.bring("cars"))
        assert engine.describe("cars").state == "READY"
        assert not brings.is_absent("cars")
        brings.note_use("cars")
        fetcher.budget_bytes = 1
        asyncio.run(brings.bring("pets"))
        assert engine.describe("cars").state == "READY"  # it was asked for just now
        monkeypatch.setattr(first_use, "IDLE_S", 0.0)
        asyncio.run(brings.bring("pets"))
        assert brings.is_absent("cars")
        assert not fetcher.holds("cars")
        engine.pin("pets")
        asyncio.run(brings.bring("cars"))
        assert engine.describe("cars").state == "READY"
        assert engine.describe("pets").state == "READY"  # it is pinned

    def test_a_task_that_could_not_leave_comes_back(
        self,
        parts: tuple[Fetcher, StoreEngine, FirstUse],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fetcher, engine, brings = parts
        monkeypatch.setattr(first_use, "IDLE_S", 0.0)
        asyncio.run(brings.bring("cars"))
        fetcher.budget_bytes = 1

        remove = fetcher.store.remove

        def refuse(task: str, *version: str, force: bool = False) -> None:
            if task == "cars":
                raise StoreError("busy")
            remove(task, *version, force=force)

        with monkeypatch.context() as patch:
            patch.setattr(fetcher.store, "remove", refuse)
            asyncio.run(brings.bring("pets"))
        assert fetcher.holds("cars")
        assert engine.describe("cars").state == "UNAVAILABLE"
        assert brings.is_absent("cars")
        asyncio.run(brings.bring("cars"))
        assert engine.describe("cars").state == "READY"

    def test_a_failure_is_told_and_not_repeated_at_once(
        self,
        parts: tuple[Fetcher, StoreEngine, FirstUse],
        origin: Origin,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fetcher, engine, brings = parts
        origin.objects.faults += [("^GET .*/cars/", 403)]
        for _ in range(2):
            with pytest.raises(UnavailableError, match="cars could not be fetched") as caught:
                asyncio.run(brings.bring("cars"))
            assert "s3://" not in str(caught.value)
            assert str(fetcher.store.root) not in str(caught.value)
        assert sum(" 403" in request for request in origin.objects.requests) == 1
        assert fetcher.n_failed == 1
        monkeypatch.setattr(first_use, "RETRY_S", 0.0)
        brings._failed.clear()
        asyncio.run(brings.bring("cars"))
        assert engine.describe("cars").state == "READY"

    def test_impatience_leaves_the_fetch_running(
        self, parts: tuple[Fetcher, StoreEngine, FirstUse], origin: Origin
    ) -> None:
        _, engine, brings = parts
        go_on = threading.Event()
        origin.objects.faults.append(("^GET .*/cars/", lambda: bool(go_on.wait())))

        async def ask() -> None:
            with pytest.raises(UnavailableError, match="cars is still being fetched"):
                await brings.bring("cars", 0.05)
            await brings.bring("pets")  # which is not held up
            go_on.set()
            await brings.bring("cars")

        asyncio.run(ask())
        assert {each.task for each in engine.versions()} == {"cars", "pets"}


@contextmanager
def serving(
    origin: Origin, cache: Path, *more: str, env: dict[str, str] | None = None
) -> Iterator[tuple[Any, str, str]]:
    """The program that follows an origin: its process, its address, and that of gRPC."""
    arguments = ("--threads", "1", "--no-log-requests", "--store", origin.url, "--grpc-port", "0")
    options = ("--cache-dir", str(cache), "--poll-s", "0.05", *more)
    with running(*arguments, *options, env=env) as (process, first):
        address, _, grpc = first.partition(" serves ")
        yield process, address, grpc.rpartition(" ")[2]


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"{url}{path}", data) as response:
        text = response.read()
    return json.loads(text) if text else None


def refusal(url: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, path, body)
    with caught.value as error:
        return error.code, json.loads(error.read())["error"]


INFER = {"inputs": [listed()], "outputs": [{"name": "logits"}]}


def test_the_program_lists_all_and_fetches_what_is_asked_for(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    expected = {
        task: reference_logits(published, published.get(task, "v1"), IMAGES)
        for task in ("pets", "cars")
    }
    with serving(origin, tmp_path / "cache") as (process, url, grpc):
        assert process.stdout.readline() == "fetched when first asked for: 2 tasks\n"
        assert ask(url, "/v2/repository/index", {}) == [
            {"name": task, "version": "1", "state": "UNAVAILABLE", "reason": NOT_HERE}
            for task in ("cars", "pets")
        ]
        assert ask(url, "/v2/repository/index", {"ready": True}) == []
        assert refusal(url, "/v2/models/cars/ready")[0] == 400
        assert refusal(url, "/v2/models/zebras/infer", INFER) == (
            404,
            "no task 'zebras'; there are 2 others",
        )
        assert downloads(origin) == []
        answer = ask(url, "/v2/models/cars/infer", INFER)
        found = np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"])
        np.testing.assert_allclose(found, expected["cars"], atol=1e-4)
        assert not any("pets" in request for request in downloads(origin))
        with triton_grpc.InferenceServerClient(grpc) as client:
            sent = triton_grpc.InferInput("image", list(IMAGES.shape), "FP32")
            sent.set_data_from_numpy(IMAGES)
            logits = client.infer("pets", [sent]).as_numpy("logits")
        np.testing.assert_allclose(logits, expected["pets"], atol=1e-4)
        states = {each["name"]: each["state"] for each in ask(url, "/v2/repository/index", {})}
        assert states == {"cars": "READY", "pets": "READY"}


def test_managing_a_task_brings_it_in(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    token = "a-token-to-manage-with"
    headers = {"authorization": f"Bearer {token}"}

    def post(url: str, method: str = "POST") -> None:
        sent = urllib.request.Request(url, b"", headers, method=method)
        with urllib.request.urlopen(sent) as response:
            assert response.status == 200

    environment = {"GLORA_MANAGEMENT_TOKEN": token}
    with serving(origin, tmp_path / "cache", env=environment) as (_, url, grpc):
        post(f"{url}/v1/tasks/cars/pin", "PUT")
        assert ask(url, "/v2/models/cars/ready") is None
        with triton_grpc.InferenceServerClient(grpc) as client:
            client.load_model("pets", headers=headers)
            assert client.is_model_ready("pets")


def test_metadata_is_a_first_use_too(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    with serving(origin, tmp_path / "cache", "--prefetch", "pets") as (_, url, _grpc):
        assert ask(url, "/v2/models/pets/ready") is None
        assert ask(url, "/v2/models/cars")["versions"] == ["1"]
        assert ask(url, "/v1/tasks/cars")["ready"] is True


def test_operators_see_that_the_origin_is_away(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    def metric(name: str) -> float:
        with urllib.request.urlopen(f"{url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.split()[0] == name)

    with serving(origin, tmp_path / "cache") as (_, url, _grpc):
        assert metric("glora_origin_up") == 1
        assert metric("glora_origin_tasks") == 2
        assert metric("glora_origin_answered_age_seconds") >= 0
        ask(url, "/v2/models/cars/infer", INFER)
        assert metric("glora_origin_fetches_total") == 1
        assert 0 < metric("glora_cache_bytes") < metric("glora_cache_budget_bytes")
        origin.objects.away = True
        while metric("glora_origin_up") == 1:
            time.sleep(0.05)
        code, said = refusal(url, "/v2/models/pets/infer", INFER)
        assert (code, said) == (
            503,
            "pets could not be fetched; the log says why. Come back later",
        )
        assert metric("glora_origin_failed_fetches_total") == 1
        assert ask(url, "/v2/models/cars/infer", INFER)["model_name"] == "cars"


def test_an_origin_that_is_away_and_no_cache_is_an_error(
    published: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    origin.objects.away = True
    fetcher = Fetcher(
        origin.bucket(), ArtifactStore.create(tmp_path / "cache"), ROOM, on_demand=True
    )
    assert not fetcher.look()
    with pytest.raises((OriginError, NotInStoreError)):
        fetcher.fetch("pets")
