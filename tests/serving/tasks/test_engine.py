"""The engine as a whole: right answers from the right task, whatever happens at once."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.errors import NonFiniteError, StoreError
from glora_deploy.serving.errors import (
    InputError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnavailableError,
    UnknownTaskError,
)
from glora_deploy.serving.predictor import Predictor
from glora_deploy.serving.tasks.contract import Answer, InferRequest, TaskEngine
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import MARK, N_TASKS, OpenEngine, add_marked_task, reference_logits

Images = NDArray[np.float32]
ATOL = 3e-5  # float32 sums of a two-block network; logits near 1


def ask(engine: TaskEngine, task: str, images: Images, version: str | None = None) -> Answer:
    return engine.submit(InferRequest(task=task, version=version, images=images)).result()


def budget_for(store: ArtifactStore, n_tasks: int) -> int:
    """A budget that holds so many of the marked tasks, whichever they are."""
    with StoreEngine(store.root, EngineSettings(threads=1, watch_s=None)) as engine:
        engine.prefetch("t5")  # the one with most classes
        return n_tasks * engine.describe("t5").size_bytes * 8 // 7 + 8


def test_every_task_answers_as_its_merged_network_does(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked)
    for task in engine.tasks():
        artifact = marked.get(task)
        answer = ask(engine, task, images)
        expected = reference_logits(marked, artifact, images)
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-6, atol=ATOL)
        assert (answer.task, answer.version) == (task, "v1")
        assert answer.delta_sha256 == artifact.manifest.adapter.sha256
        assert answer.batch_size == 3
    assert engine.usage().swaps == N_TASKS + 1


def test_it_answers_as_the_predictor_of_an_export(
    trained: tuple[ArtifactStore, Artifact], open_engine: OpenEngine, images: Images
) -> None:
    store, artifact = trained
    predictor = Predictor.from_store(store.root, artifact.task, threads=1)
    expected = predictor._model.session.logits(images)
    found = ask(open_engine(store), artifact.task, images).logits
    np.testing.assert_allclose(found, expected, atol=ATOL)


def test_the_index_says_what_there_is(marked: ArtifactStore, open_engine: OpenEngine) -> None:
    engine = open_engine(marked)
    tasks = ["colours", *(f"t{index}" for index in range(N_TASKS))]
    assert engine.tasks() == tasks
    assert [(v.task, v.version, v.state, v.is_current) for v in engine.versions()] == [
        (task, "v1", "READY", True) for task in tasks
    ]
    about = engine.describe("t2")
    assert about.labels == tuple(f"class {index}" for index in range(10))
    assert about.input_shape == (3, 32, 32)
    assert about.preprocessing.size == (32, 32)
    assert (about.in_memory, about.size_bytes) == (False, 0)
    engine.prefetch("t2")
    about = engine.describe("t2")
    assert about.in_memory
    assert engine.usage().weights_bytes == about.size_bytes > 0
    backbone = marked.get("t2").manifest.backbone.fingerprint
    file = marked.backbone_path(backbone) / "model.safetensors"
    assert 0 < file.stat().st_size - engine.usage().backbone_bytes < 10_000  # its header


def test_a_storm_of_swaps_from_many_threads_gives_no_wrong_answer(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    """Six tasks in room for two, one of them with two versions, loads and unloads meanwhile."""
    second = add_marked_task(own_marked, own_marked.get("colours"), "t0", mark=7, seed=9)
    own_marked.set_current("t0", "v1")
    digests = {(a.task, a.version): a.manifest.adapter.sha256 for a in _all(own_marked)}
    marks = {(f"t{index}", "v1"): index for index in range(N_TASKS)} | {("t0", "v2"): 7}
    expected = {
        key: reference_logits(own_marked, own_marked.get(*key), images[:1]) for key in marks
    }
    engine = open_engine(own_marked, memory_budget_bytes=budget_for(own_marked, 2), max_batch=4)
    stop = threading.Event()

    def disturb() -> int:
        for n in itertools.count():
            if stop.is_set():
                return n
            own_marked.set_current("t0", ("v2", "v1")[n % 2])
            engine.load("t0")
            engine.unload("t1")
            engine.load("t1")
        raise AssertionError

    def client(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        wrong = []
        for _ in range(60):
            task = f"t{rng.integers(N_TASKS)}"
            version = None if rng.random() < 0.7 else "v1"
            n = int(rng.integers(1, 4))
            try:
                answer = ask(engine, task, images[[0] * n], version)
            except UnavailableError:
                assert task == "t1"  # between its unload and its load
                continue
            key = (answer.task, answer.version)
            right = (
                answer.task == task
                and version in (None, answer.version)
                and answer.delta_sha256 == digests[key]
                and answer.logits.shape == (n, expected[key].shape[1])
                and (answer.logits.argmax(1) == marks[key]).all()
                and np.allclose(answer.logits, expected[key], rtol=1e-6, atol=ATOL)
            )
            if not right:
                wrong.append(f"{task} {version}: {answer}")
        return wrong

    with ThreadPoolExecutor(9) as pool:
        disturbing = pool.submit(disturb)
        wrong = [line for lines in pool.map(client, range(8)) for line in lines]
        stop.set()
        assert disturbing.result() > 0
    assert wrong == []
    usage = engine.usage()
    assert usage.evictions > 10
    assert (usage.queued, usage.in_flight) == (0, 0)
    assert usage.weights_bytes <= usage.budget_bytes
    assert second.version == "v2"


def _all(store: ArtifactStore) -> list[Artifact]:
    return [store.get(task, v) for task in store.tasks() for v in store.versions(task)]


def test_a_batch_is_of_one_task_and_the_rest_waits_its_turn(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, max_batch=16, max_delay_ms=50)
    requests = [
        InferRequest(task=f"t{index % 3}", images=images[: 1 + index % 2]) for index in range(12)
    ]
    answers = [future.result() for future in [engine.submit(request) for request in requests]]
    for index, answer in enumerate(answers):
        assert answer.task == f"t{index % 3}"
        assert (answer.logits.argmax(1) == index % 3).all()
        assert len(answer.logits) == 1 + index % 2
    for task in ("t0", "t1", "t2"):
        (counts,) = engine.statistics(task)
        assert counts.inference_count == sum(
            len(answer.logits) for answer in answers if answer.task == task
        )
        assert counts.execution_count == sum(batch.infer.count for batch in counts.batches)


def test_rows_of_a_batch_are_told_apart(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, max_delay_ms=50)
    together = [
        engine.submit(InferRequest(task="t3", images=images[[index]])) for index in (0, 1, 2)
    ]
    alone = ask(engine, "t3", images)
    for index, future in enumerate(together):
        np.testing.assert_allclose(future.result().logits[0], alone.logits[index], atol=ATOL)


def test_wrong_images_are_refused_before_they_wait(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, max_batch=2)
    for wrong, error, text in (
        (images[:1, :, :16], InputError, r"shape \(n, 3, 32, 32\), got float32 \(1, 3, 16, 32\)$"),
        (images[0], InputError, r"got float32 \(3, 32, 32\)$"),
        (images[:1].astype(np.float64), InputError, r"got float64"),
        (images[:0], InputError, r"^images must be at least 1, got 0$"),
        (images, TooLargeError, r"^images must be at most 2 at once, got 3$"),
    ):
        with pytest.raises(error, match=text):
            engine.submit(InferRequest(task="t0", images=wrong))
    (counts,) = engine.statistics("t0")
    assert (counts.fail.count, counts.rejected) == (5, 0)
    assert engine.usage().in_flight == 0


def test_what_is_not_there_is_named(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked)
    for call in (
        lambda: engine.submit(InferRequest(task="nobody", images=images)),
        lambda: engine.describe("nobody"),
        lambda: engine.versions("nobody"),
        lambda: engine.statistics("nobody"),
        lambda: engine.unload("nobody"),
        lambda: engine.prefetch("nobody"),
        lambda: engine.pin("nobody"),
        lambda: engine.load("nobody"),
        lambda: engine.load("../etc"),
    ):
        with pytest.raises(ServingError, match=r"nobody|etc"):
            call()
    with pytest.raises(
        UnknownTaskError, match=r"^no version 'v9' of task 't0'; versions here: v1$"
    ):
        ask(engine, "t0", images, "v9")
    with pytest.raises(UnknownTaskError):
        engine.load("t0", "v9")


def test_an_image_of_nan_spoils_its_own_answer_only(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, max_delay_ms=50)
    bad = images[:1].copy()
    bad[0, 0, 0, 0] = np.nan
    doomed = engine.submit(InferRequest(task="t4", images=bad))
    kept = engine.submit(InferRequest(task="t4", images=images[:1]))
    with pytest.raises(NonFiniteError, match=r"^t4/v1: logits must be finite"):
        doomed.result()
    assert kept.result().logits.argmax() == 4


def test_pinned_tasks_stay_and_pins_have_room(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    budget = budget_for(marked, 2)
    engine = open_engine(marked, memory_budget_bytes=budget, pins=("t0",))
    assert engine.describe("t0").pinned
    assert engine.describe("t0").in_memory
    for index in (1, 2, 3, 4, 5, 1, 2):
        ask(engine, f"t{index}", images)
        assert engine.describe("t0").in_memory
    engine.pin("t1")
    with pytest.raises(UnavailableError, match=r"^the budget of \d+ bytes must hold all"):
        engine.pin("t2")
    assert [engine.describe(task).pinned for task in ("t0", "t1", "t2")] == [True, True, False]
    engine.pin("t1", pinned=False)
    engine.pin("t0", pinned=False)
    assert not engine.describe("t0").pinned
    for index in (2, 3, 4):
        ask(engine, f"t{index}", images)
    assert not engine.describe("t0").in_memory


def test_a_task_that_stays_hot_gets_weights_laid_out_as_constants(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, hot_after=3)
    before = ask(engine, "t2", images)
    size = engine.describe("t2").size_bytes
    for _ in range(3):
        ask(engine, "t2", images)
    while engine.describe("t2").size_bytes == size:  # it is made in the background
        ask(engine, "t2", images)
    (version, _) = engine._live.find("t2", None)
    assert engine._weights.fix(version)  # waits for nothing: it is there, or is made here
    after = ask(engine, "t2", images)
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-6, atol=ATOL)
    assert after.delta_sha256 == before.delta_sha256
    assert engine.describe("t2").size_bytes > 1.9 * size
    assert engine.usage().weights_bytes == engine.describe("t2").size_bytes


def test_constants_give_way_to_other_tasks(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, memory_budget_bytes=budget_for(marked, 2), hot_after=None)
    (version, _) = engine._live.find("t1", None)
    assert not engine._weights.fix(version)  # its weights are not in memory
    ask(engine, "t1", images)
    assert engine._weights.fix(version)
    ask(engine, "t2", images)
    assert engine.describe("t1").in_memory
    assert not engine._weights.fix(version)  # no room
    assert ask(engine, "t1", images).logits.argmax(1).tolist() == [1] * 3
    assert engine.usage().swaps == 2


def test_a_delta_in_memory_is_not_read_again(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked)
    ask(engine, "t0", images)
    (own_marked.get("t0").path / "adapter.safetensors").unlink()
    (version, _) = engine._live.find("t0", None)
    engine._weights.cache.drop(version)
    assert ask(engine, "t0", images).logits.argmax(1).tolist() == [0] * 3
    assert engine.usage().swaps == 2


def test_a_budget_of_nothing_still_answers(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, memory_budget_bytes=0)
    for index in (0, 1, 0, 1):
        assert ask(engine, f"t{index}", images).logits.argmax(1).tolist() == [index] * 3
    assert engine.usage().weights_bytes == 0
    assert engine.usage().swaps == 4


def test_hits_and_misses_are_counted(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked)
    first, second = ask(engine, "t0", images), ask(engine, "t0", images[:1])
    (counts,) = engine.statistics("t0", "v1")
    assert (counts.cache_miss.count, counts.cache_hit.count) == (1, 1)
    assert (counts.success.count, counts.fail.count) == (2, 0)
    assert (counts.inference_count, counts.execution_count) == (4, 2)
    assert [(batch.batch_size, batch.infer.count) for batch in counts.batches] == [(1, 1), (3, 1)]
    assert counts.memory_bytes == engine.describe("t0").size_bytes > 0
    assert first.swap_ns > 0 == second.swap_ns
    assert counts.compute_infer.ns == first.compute_ns + second.compute_ns


def test_a_full_queue_says_so_and_a_cancelled_request_is_counted(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, max_batch=2, max_queue=2, max_delay_ms=1e7)
    waiting = engine.submit(InferRequest(task="t0", images=images[:1]))
    with pytest.raises(OverloadedError) as refused:
        engine.submit(InferRequest(task="t1", images=images[:2]))
    assert refused.value.retry_after_s > 0
    assert waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result()
    assert engine.statistics("t0")[0].cancelled == 1
    assert engine.statistics("t1")[0].rejected == 1
    assert engine.usage().in_flight == 0


def test_close_answers_what_was_admitted_and_takes_no_more(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(marked, max_delay_ms=1e7)
    assert engine.ready
    requests = [InferRequest(task=f"t{index % 3}", images=images[:1]) for index in range(6)]
    futures = [engine.submit(request) for request in requests]
    engine.close()
    assert not engine.ready
    assert [future.result().logits.argmax() for future in futures] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UnavailableError):
        engine.submit(InferRequest(task="t0", images=images))


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        StoreEngine(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_batch", 0),
        ("max_queue", 3),
        ("threads", 0),
        ("hot_after", 0),
        ("watch_s", 0),
        ("backend", "tflite"),
        ("mixed_batches", "on"),
        ("memory_budget_bytes", -1),
        ("max_delay_ms", float("nan")),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        EngineSettings(**{field: value})  # type: ignore[arg-type]


SERVE = """
import sys
import numpy as np
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
with StoreEngine(sys.argv[1], EngineSettings(threads=1)) as engine:
    images = np.zeros((1, 3, 32, 32), np.float32)
    for task in ("t0", "t3"):
        print(engine.submit(InferRequest(task=task, images=images)).result().logits.argmax())
    engine.load("t1")
print(sorted({"torch", "timm", "torchvision"} & sys.modules.keys()))
"""


def test_a_server_imports_no_torch(marked: ArtifactStore) -> None:
    command = [sys.executable, "-c", SERVE, str(marked.root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "3", "[]"]


def test_marks_stand_out(marked: ArtifactStore, images: Images) -> None:
    logits = reference_logits(marked, marked.get("t1"), images)
    assert (np.sort(logits, 1)[:, -1] - np.sort(logits, 1)[:, -2] > MARK / 2).all()


def test_what_a_version_runs_on_is_looked_up_once(
    marked: ArtifactStore, open_engine: OpenEngine, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(marked)
    first = ask(engine, "t1", images)

    def never(*_: object) -> None:
        raise AssertionError("looked up again")

    monkeypatch.setattr(engine._networks, "of", never)
    again = ask(engine, "t1", images)
    assert np.array_equal(first.logits, again.logits)
