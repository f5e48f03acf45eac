"""One front and two replicas on a cluster of this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton

pytest.importorskip("ray", reason="needs the extra ray")

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.scale_out.routed_engine import RoutedEngine
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from http_server import serving
from marked_tasks import add_marked_task

TASKS = ("ants", "bees", "cats", "dogs")
SETTINGS = EngineSettings(threads=1, watch_s=0.2)
IMAGES = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)

pytestmark = pytest.mark.filterwarnings("default")  # of Ray itself


@pytest.fixture
def store(scaled_store: ArtifactStore) -> ArtifactStore:
    return scaled_store


@pytest.fixture
def engine(two_replicas: RoutedEngine) -> RoutedEngine:
    return two_replicas


@pytest.fixture
def address(engine: RoutedEngine) -> Iterator[str]:
    with serving(build_app(engine)) as served:
        yield served.address


def expected(store: ArtifactStore) -> dict[str, np.ndarray]:
    """Logits of every delta, by its digest, from one process alone."""
    with StoreEngine(store.root, SETTINGS) as alone:
        return {
            each.delta_sha256: alone.submit(
                InferRequest(task=each.task, version=each.version, images=IMAGES)
            )
            .result(60)
            .logits
            for each in alone.versions()
        }


def ask(client: triton.InferenceServerClient, task: str) -> tuple[str, np.ndarray]:
    sent = triton.InferInput("image", list(IMAGES.shape), "FP32")
    sent.set_data_from_numpy(IMAGES)
    result = client.infer(task, [sent])
    return result.get_response()["parameters"]["delta_sha256"], result.as_numpy("logits")


def test_each_task_answers_as_itself_from_replicas_that_hold_it(
    engine: RoutedEngine, address: str, store: ArtifactStore
) -> None:
    right = expected(store)
    assert len({each.tobytes() for each in right.values()}) == len(TASKS) + 2  # and colours
    with triton.InferenceServerClient(address) as client:
        for turn in range(20):
            for task in TASKS:
                if turn == 1:
                    time.sleep(0.5)
                digest, logits = ask(client, task)
                assert digest == engine.describe(task).delta_sha256
                np.testing.assert_allclose(logits, right[digest], rtol=1e-4, atol=1e-5)
    # At random, about six answers of ten would come from the replica that gives most of a task's.
    # Ray tells routers who holds what a tenth of a second later, and prefers who is not busy.
    answers = [engine.replicas_of(task).values() for task in TASKS]
    assert sum(map(max, answers)) > 0.75 * sum(map(sum, answers))


def test_errors_have_the_protocols_form(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        with pytest.raises(triton.InferenceServerException, match="zebras"):
            ask(client, "zebras")
        assert client.is_model_ready("ants")


def test_a_new_version_answers_under_its_own_digest(
    engine: RoutedEngine,
    address: str,
    store: ArtifactStore,
    trained: tuple[ArtifactStore, Artifact],
) -> None:
    before = engine.describe("bees").delta_sha256
    new = add_marked_task(store, trained[1], "bees", mark=6, n_classes=8, seed=40)
    right = expected(store)
    seen = []
    with triton.InferenceServerClient(address) as client:
        while not seen or seen[-1] == before:
            digest, logits = ask(client, "bees")
            np.testing.assert_allclose(logits, right[digest], rtol=1e-4, atol=1e-5)
            seen.append(digest)
    assert seen[-1] == engine.describe("bees", new.version).delta_sha256 != before


def test_a_replica_killed_under_load_loses_and_mixes_nothing(
    engine: RoutedEngine, address: str, store: ArtifactStore
) -> None:
    right = expected(store)
    wrong: list[str] = []
    lost: list[str] = []
    answered: list[str] = []
    end = threading.Event()

    def load(task: str) -> None:
        with triton.InferenceServerClient(address) as client:
            while not end.is_set():
                try:
                    digest, logits = ask(client, task)
                except triton.InferenceServerException as error:
                    lost.append(str(error))
                    continue
                answered.append(task)
                if digest != engine.describe(task).delta_sha256 or not np.allclose(
                    logits, right[digest], rtol=1e-4, atol=1e-5
                ):
                    wrong.append(task)

    threads = [threading.Thread(target=load, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    try:
        while len(answered) < 40:
            time.sleep(0.01)
        before = engine.replicas_of("ants")
        victim = max(before, key=lambda replica: before[replica])
        pid = int(victim.rsplit(":", 1)[1])
        os.kill(pid, signal.SIGSTOP)  # so that it has requests when it dies
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        at_kill = answered.count("ants")
        while answered.count("ants") < at_kill + 40 and not lost:
            time.sleep(0.01)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert answered.count("ants") >= at_kill + 40
    assert wrong == []
    assert lost == []
    after = engine.replicas_of("ants")
    others = after.keys() - {victim}
    assert sum(after[each] for each in others) > sum(before.get(each, 0) for each in others)


def test_what_one_replica_alone_would_do_is_refused(engine: RoutedEngine) -> None:
    from glora_deploy.serving.errors import UnavailableError

    with pytest.raises(UnavailableError, match="every replica follows"):
        engine.unload("ants")
