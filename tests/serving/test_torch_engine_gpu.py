"""The engine on a GPU: one captured network, weights overwritten in place from task to task."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.store import ArtifactStore
from marked_tasks import add_marked_task, reference_logits
from stored_tasks import make_stored_task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

N_TASKS = 4
ATOL = 1e-4  # float32 on a GPU; logits near 1
IMAGES = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    store, base = make_stored_task(tmp_path_factory.mktemp("gpu") / "artifacts", "base")
    for index in range(N_TASKS):
        add_marked_task(store, base, f"t{index}", mark=index, n_classes=4 + index, seed=index)
    return store


def open_engine(store: ArtifactStore, **changes: object) -> StoreEngine:
    fields = {"backend": "torch", "device": "cuda", "watch_s": None, "max_batch": 8, **changes}
    return StoreEngine(store.root, EngineSettings(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 3, 8])
def test_every_task_answers_as_its_merged_network_does(store: ArtifactStore, n: int) -> None:
    with open_engine(store) as engine:
        for task in (*engine.tasks(), *engine.tasks()):  # captured, and replayed
            answer = engine.submit(InferRequest(task=task, images=IMAGES[:n])).result()
            expected = reference_logits(store, store.get(task), IMAGES[:n])
            np.testing.assert_allclose(answer.logits, expected, rtol=1e-5, atol=ATOL)


def test_a_storm_of_swaps_gives_no_wrong_answer(store: ArtifactStore) -> None:
    with open_engine(store, memory_budget_bytes=700_000) as engine:

        def client(seed: int) -> int:
            rng = np.random.default_rng(seed)
            wrong = 0
            for _ in range(100):
                index, n = int(rng.integers(N_TASKS)), int(rng.integers(1, 5))
                request = InferRequest(task=f"t{index}", images=IMAGES[:n])
                wrong += int((engine.submit(request).result().logits.argmax(1) != index).any())
            return wrong

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(client, range(8))) == 0
        assert engine.usage().swaps > 10


def test_batch_sizes_are_captured_while_other_tasks_are_merged(store: ArtifactStore) -> None:
    with open_engine(store, memory_budget_bytes=0) as engine, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> bool:
            index, n = number % N_TASKS, 1 + number % 8
            request = InferRequest(task=f"t{index}", images=IMAGES[:n])
            return bool((engine.submit(request).result().logits.argmax(1) == index).all())

        assert all(pool.map(ask, range(64)))
        assert engine.usage().swaps > 10
