"""One replica that is behind the front: what it does with a version it has not verified yet."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from glora_deploy.serving.errors import UnavailableError
from glora_deploy.serving.scale_out.replica import EngineReplica
from glora_deploy.serving.tasks.contract import Answer, InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.serving.tasks.versions import LiveVersion
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import add_marked_task

pytestmark = pytest.mark.filterwarnings("default")  # of Ray itself

IMAGES = np.zeros((1, 3, 32, 32), np.float32)
N_WAITING = 5


class SlowToVerify:
    """Stands in for an engine's proof: it waits before it begins, and counts."""

    def __init__(self, engine: StoreEngine) -> None:
        self._prove = engine._live._prove
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.n = 0
        engine._live._prove = self

    def __call__(self, version: LiveVersion) -> None:
        self.n += 1
        self.begun.set()
        self.may_go_on.wait()
        self._prove(version)


@pytest.fixture
def own(scaled_store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(scaled_store.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")


@pytest.fixture
def replica(own: ArtifactStore) -> Iterator[EngineReplica]:
    made = EngineReplica(str(own.root), EngineSettings(threads=1, watch_s=None))
    yield made
    made.__del__()


def wanted(version: Artifact) -> InferRequest:
    return InferRequest(task=version.task, version=version.version, images=IMAGES)


def test_a_version_that_is_being_verified_is_waited_for_once_by_all(
    replica: EngineReplica, own: ArtifactStore, trained: tuple[ArtifactStore, Artifact]
) -> None:
    new = add_marked_task(own, trained[1], "bees", mark=7, n_classes=8, seed=70)
    verifying = SlowToVerify(replica._engine)

    async def ask_all() -> list[Answer]:
        first = asyncio.create_task(replica._answer(wanted(new)))
        await asyncio.to_thread(verifying.begun.wait)
        assert replica._engine.describe("bees", new.version).state == "LOADING"
        others = [asyncio.create_task(replica._answer(wanted(new))) for _ in range(N_WAITING)]
        await asyncio.sleep(0)  # each has met that state
        first.cancel()
        verifying.may_go_on.set()
        return await asyncio.gather(*others)

    answers = asyncio.run(ask_all())
    assert {answer.delta_sha256 for answer in answers} == {new.manifest.adapter.sha256}
    assert {int(answer.logits.argmax()) for answer in answers} == {7}
    assert verifying.n == 1


def test_a_version_it_has_not_seen_is_looked_for(
    replica: EngineReplica, own: ArtifactStore, trained: tuple[ArtifactStore, Artifact]
) -> None:
    new = add_marked_task(own, trained[1], "bees", mark=7, n_classes=8, seed=70)
    answer = asyncio.run(replica._answer(wanted(new)))
    assert answer.delta_sha256 == new.manifest.adapter.sha256


def test_a_version_that_was_refused_is_refused_at_once(
    replica: EngineReplica, own: ArtifactStore
) -> None:
    verifying = SlowToVerify(replica._engine)
    verifying.may_go_on.set()
    cats = own.get("cats")
    replica._engine.unload("cats")
    with pytest.raises(UnavailableError, match="cats/v1 is not ready"):
        asyncio.run(replica._answer(wanted(cats)))
    assert verifying.n == 0
