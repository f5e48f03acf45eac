"""Tasks whose deltas allow it share batches; the others are answered beside them as ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.store.store import ArtifactStore
from marked_tasks import OpenEngine, add_marked_task, reference_logits

FORMS = (
    "A=vector B=lora:2 C=lora:1 D=vector E=vector",
    "A=scalar B=lora:4 E=scalar",
    "B=vector C=vector D=scalar",
)
ATOL = 5e-5  # float32; logits near 1


@pytest.fixture
def mixed(own_marked: ArtifactStore) -> ArtifactStore:
    """``m0`` to ``m2`` beside ``t0`` to ``t5``, which cannot share batches."""
    base = own_marked.get("colours")
    for index, forms in enumerate(FORMS):
        add_marked_task(
            own_marked, base, f"m{index}", mark=index, n_classes=4 + index, seed=index, forms=forms
        )
    return own_marked


def test_the_index_says_who_shares_batches(mixed: ArtifactStore, open_engine: OpenEngine) -> None:
    engine = open_engine(mixed)
    assert {v.task: v.mixed for v in engine.versions() if v.task != "colours"} == {
        **{f"m{index}": True for index in range(3)},
        **{f"t{index}": False for index in range(6)},
    }
    engine.prefetch("m0")
    engine.prefetch("t0")
    about = engine.describe("m0")
    assert about.in_memory
    assert about.size_bytes < engine.describe("t0").size_bytes / 10
    off = open_engine(mixed, mixed_batches="off")
    assert not any(version.mixed for version in off.versions())


def test_one_batch_answers_every_task_as_its_merged_network_does(
    mixed: ArtifactStore, open_engine: OpenEngine, images: NDArray[np.float32]
) -> None:
    engine = open_engine(mixed, max_batch=7, max_delay_ms=1e7, prefetch=("m0", "m1", "m2"))
    asked = [("m0", 1), ("m1", 2), ("m2", 1), ("m0", 1), ("m2", 2)]
    futures = [engine.submit(InferRequest(task=task, images=images[:n])) for task, n in asked]
    # No queue is full, and none waits for its time to come: together they fill a batch.
    for (task, n), future in zip(asked, futures, strict=True):
        answer, artifact = future.result(), mixed.get(task)
        assert answer.batch_size == 7
        assert (answer.task, answer.version) == (task, "v1")
        assert answer.delta_sha256 == artifact.manifest.adapter.sha256
        expected = reference_logits(mixed, artifact, images[:n])
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-6, atol=ATOL)
    assert [engine.statistics(f"m{index}")[0].execution_count for index in range(3)] == [1, 1, 1]


def test_merged_and_mixed_answers_are_the_same(
    mixed: ArtifactStore, open_engine: OpenEngine, images: NDArray[np.float32]
) -> None:
    both = [open_engine(mixed, mixed_batches=mode) for mode in ("auto", "off")]
    for index in range(3):
        request = InferRequest(task=f"m{index}", images=images)
        found, expected = (engine.submit(request).result().logits for engine in both)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=ATOL)


def test_a_storm_over_both_kinds_gives_no_wrong_answer(
    mixed: ArtifactStore, open_engine: OpenEngine, images: NDArray[np.float32]
) -> None:
    engine = open_engine(mixed, memory_budget_bytes=2**20, max_batch=6)
    tasks = [*(f"m{index}" for index in range(3)), *(f"t{index}" for index in range(6))]
    expected = {task: reference_logits(mixed, mixed.get(task), images) for task in tasks}

    def client(seed: int) -> int:
        rng = np.random.default_rng(seed)
        wrong = 0
        for _ in range(50):
            task, rows = tasks[rng.integers(len(tasks))], rng.integers(3, size=rng.integers(1, 4))
            answer = engine.submit(InferRequest(task=task, images=images[rows])).result()
            right = answer.task == task and answer.logits.shape == expected[task][rows].shape
            wrong += not (
                right and np.allclose(answer.logits, expected[task][rows], rtol=1e-6, atol=ATOL)
            )
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) == 0
    shared = sum(
        counts.execution_count for index in range(3) for counts in engine.statistics(f"m{index}")
    )
    assert shared > 0
