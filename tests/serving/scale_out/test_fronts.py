"""The program with replicas: its options, a second front, more replicas under load, roll-outs."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from typer.testing import CliRunner

pytest.importorskip("ray", reason="needs the extra ray")

import ray

from glora_deploy.errors import StoreError
from glora_deploy.serving.cli import app
from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.scale_out.cluster import attached, replicas
from glora_deploy.serving.scale_out.routed_engine import RoutedEngine
from glora_deploy.serving.scale_out.scale import Scale
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.store import ArtifactStore
from http_server import serving
from marked_tasks import add_marked_task
from server_program import running

pytestmark = pytest.mark.filterwarnings("default")  # of Ray itself

SETTINGS = EngineSettings(threads=1, watch_s=0.05)
IMAGES = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def own_scaled(scaled_store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A copy that a test may change."""
    shutil.copytree(scaled_store.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cluster", "auto"), "cluster must go with --replicas"),
        (("--max-replicas", "3"), "max-replicas must go with --replicas"),
        (("--replica-cpus", "2"), "replica-cpus must go with --replicas"),
        (("--replicas", "4", "--max-replicas", "2"), "max-replicas must be at least --replicas 4"),
        (("--attach",), "attach must go with --cluster"),
        (
            ("--attach", "--cluster", "auto", "--replicas", "2"),
            "replicas must be left to the front",
        ),
        (("--replicas", "0"), "greater than or equal to 1"),
        (("--replicas", "2", "--store", "s3://models/prod"), "fetch must be all"),
        (
            ("--replicas", "2", "--store", "s3://models/prod", "--cluster", "auto"),
            "store must be a folder",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_wrong_usage(
    arguments: tuple[str, ...], said: str
) -> None:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def ask(address: str, of: object, task: str) -> str:
    with of.InferenceServerClient(address) as client:  # type: ignore[attr-defined]
        sent = of.InferInput("image", list(IMAGES.shape), "FP32")  # type: ignore[attr-defined]
        sent.set_data_from_numpy(IMAGES)
        best = int(client.infer(task, [sent]).as_numpy("logits").argmax())
    return "abcd"[best]


def test_the_program_answers_from_replicas_and_leaves_nothing(own_scaled: ArtifactStore) -> None:
    arguments = ("--store", str(own_scaled.root), "--replicas", "2", "--replica-cpus", "0.5")
    with running(*arguments, "--no-log-requests", "--grpc-port", "0") as (process, first):
        http, _, grpc = first.removeprefix("http://").partition(" serves ")
        assert ask(http, over_http, "bees") == "b"
        assert ask(grpc.split()[-1], over_grpc, "dogs") == "d"
        children = set(_below(process.pid))
        assert len(children) > 4  # Ray's own, and two replicas
        process.terminate()
        assert process.wait() == 0
    while left := [pid for pid in children if _is_alive(pid)]:
        time.sleep(0.1)  # pytest's own limit ends it
    assert left == []


def _below(pid: int) -> Iterator[int]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from _below(int(child))


def _is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_second_front_attaches_and_ends_alone(own_scaled: ArtifactStore) -> None:
    with replicas(own_scaled.root, SETTINGS, Scale(replicas=1, cpus=0.5)) as handle:
        engine = RoutedEngine(own_scaled.root, SETTINGS, handle)
        try:
            cluster = ray.get_runtime_context().gcs_address
            arguments = ("--store", str(own_scaled.root), "--attach", "--cluster", cluster)
            for _ in range(2):
                with running(*arguments, "--no-log-requests") as (_, first):
                    address = first.split()[0].removeprefix("http://")
                    assert ask(address, over_http, "cats") == "c"
                answer = engine.submit(
                    InferRequest(task="dogs", version=None, images=IMAGES)
                ).result(60)
                assert int(answer.logits.argmax()) == 3
            store = ("--store", str(own_scaled.root))
            with (
                pytest.raises(AssertionError, match="replicas run there already"),
                running(*store, "--replicas", "1", "--cluster", cluster),
            ):
                pass
        finally:
            engine.close(5)


def test_a_cluster_that_is_not_there_is_told() -> None:
    with (
        pytest.raises(StoreError, match="no Ray cluster could be reached"),
        attached("127.0.0.1:1"),
    ):
        pass


def test_more_replicas_come_when_they_are_busy_and_go_again(own_scaled: ArtifactStore) -> None:
    scale = Scale(
        replicas=1,
        max_replicas=2,
        target_ongoing=1.0,
        cpus=0.5,
        upscale_delay_s=0.5,
        downscale_delay_s=1.0,
    )
    ended = threading.Event()
    wrong: list[str] = []
    with replicas(own_scaled.root, SETTINGS, scale) as handle:
        engine = RoutedEngine(own_scaled.root, SETTINGS, handle)
        with serving(build_app(engine)) as served:

            def load(task: str) -> None:
                with over_http.InferenceServerClient(served.address) as client:
                    while not ended.is_set():
                        sent = over_http.InferInput("image", list(IMAGES.shape), "FP32")
                        sent.set_data_from_numpy(IMAGES)
                        found = int(client.infer(task, [sent]).as_numpy("logits").argmax())
                        if "abcd"[found] != task[0]:
                            wrong.append(task)

            names = ("ants", "bees", "cats", "dogs") * 2
            threads = [threading.Thread(target=load, args=(task,)) for task in names]
            for thread in threads:
                thread.start()
            try:
                while _n_running() < 2:
                    time.sleep(0.1)
            finally:
                ended.set()
                for thread in threads:
                    thread.join()
            while _n_running() > 1:
                time.sleep(0.1)
            assert ask(served.address, over_http, "ants") == "a"
        engine.close(5)
    assert wrong == []


def _n_running() -> int:
    states = ray.serve.status().applications["glora"].deployments["engine"].replica_states
    return sum(n for state, n in states.items() if str(state) == "RUNNING")


def test_versions_that_come_and_go_under_load_are_never_mixed(
    own_scaled: ArtifactStore, trained: tuple[ArtifactStore, object]
) -> None:
    """Each answer's class is that of the version whose digest it carries."""
    with (
        replicas(own_scaled.root, SETTINGS, Scale(replicas=2, cpus=0.5)) as handle,
        StoreEngine(own_scaled.root, SETTINGS) as watcher,
    ):
        engine = RoutedEngine(own_scaled.root, SETTINGS, handle)
        digests = {watcher.describe("bees").delta_sha256: 1}
        ended = threading.Event()
        problems: list[str] = []
        answered: Counter[int] = Counter()

        def load() -> None:
            while not ended.is_set():
                request = InferRequest(task="bees", version=None, images=IMAGES)
                try:
                    answer = engine.submit(request).result(60)
                except Exception as error:
                    problems.append(repr(error))
                    continue
                found = int(answer.logits.argmax())
                if digests[answer.delta_sha256] != found:
                    problems.append(f"{answer.version}: {found}")
                answered[found] += 1

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(12):
                mark = 2 + turn % 5
                made = add_marked_task(
                    own_scaled, trained[1], "bees", mark=mark, n_classes=8, seed=50 + turn,
                    make_current=False,
                )  # fmt: skip
                watcher.load("bees", made.version)
                digests[watcher.describe("bees", made.version).delta_sha256] = mark
                own_scaled.set_current("bees", made.version)
                seen = answered[mark]
                while answered[mark] <= seen and not problems:
                    time.sleep(0.01)
                if turn % 3 == 2:
                    own_scaled.rollback("bees")
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        engine.close(5)
    assert problems == []
    assert len(answered) == 6
