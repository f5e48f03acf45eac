"""Deltas in memory: verified when they are read, within their bytes."""

from __future__ import annotations

import numpy as np
import pytest

from glora_deploy.errors import ArtifactError
from glora_deploy.serving.tasks.delta_shelf import DeltaShelf
from glora_deploy.serving.tasks.versions import LiveVersion
from glora_deploy.store.store import ArtifactStore


def delta_bytes(store: ArtifactStore, task: str) -> int:
    return sum(tensor.nbytes for tensor in store.get(task).tensors().values())


def test_it_keeps_the_latest_used_within_its_bytes(marked: ArtifactStore) -> None:
    t0, t1, t2 = (LiveVersion(marked.get(f"t{index}")) for index in range(3))
    shelf = DeltaShelf(delta_bytes(marked, "t1") + delta_bytes(marked, "t2"))
    first, second = shelf.delta(t0), shelf.delta(t1)
    assert shelf.delta(t0) is first
    shelf.delta(t2)
    assert shelf.delta(t0) is first
    assert shelf.delta(t1) is not second
    assert shelf.size_bytes <= delta_bytes(marked, "t1") + delta_bytes(marked, "t2")
    shelf.drop(t0)
    again = shelf.delta(t0)
    assert again is not first
    for name, tensor in again.items():
        np.testing.assert_array_equal(tensor, first[name])


def test_a_delta_larger_than_all_its_bytes_is_given_and_not_kept(marked: ArtifactStore) -> None:
    shelf = DeltaShelf(10)
    version = LiveVersion(marked.get("t0"))
    assert shelf.delta(version) is not shelf.delta(version)
    assert shelf.size_bytes == 0


def test_reading_anew_sees_damage_that_memory_hides(own_marked: ArtifactStore) -> None:
    shelf = DeltaShelf(10**9)
    version = LiveVersion(own_marked.get("t0"))
    kept = shelf.delta(version)
    path = version.artifact.path / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert shelf.delta(version) is kept
    with pytest.raises(ArtifactError, match="sha256"):
        shelf.read(version)
    assert shelf.delta(version) is kept  # what was verified is as good as it was
