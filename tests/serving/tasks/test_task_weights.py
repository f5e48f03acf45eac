"""Weights of tasks whose network merges them itself: counted, kept and dropped as others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glora_deploy.serving.engines.torch_gpu import TorchGpuNetwork
from glora_deploy.serving.tasks.merge_task import adapted_tensors
from glora_deploy.serving.tasks.networks import Loaded
from glora_deploy.serving.tasks.task_weights import MergedWeights, TaskWeights
from glora_deploy.serving.tasks.versions import LiveVersion
from glora_deploy.store.mapped_safetensors import map_tensors
from marked_tasks import reference_logits
from stored_tasks import make_stored_task

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)


def test_a_network_that_merges_itself_serves_task_after_task(tmp_path: Path) -> None:
    store, one = make_stored_task(tmp_path / "artifacts", "one", seed=1)
    _, two = make_stored_task(tmp_path / "artifacts", "two", seed=2)
    backbone = one.manifest.backbone.fingerprint
    frozen = map_tensors(store.backbone_path(backbone) / "model.safetensors")
    adapted = adapted_tensors(one.manifest)
    network = TorchGpuNetwork(one.manifest, frozen, adapted=adapted, device="cpu")
    versions = [LiveVersion(one), LiveVersion(two)]
    size = network.size_of(one.manifest)
    weights = TaskWeights(size * 3 // 2, lambda version: Loaded(network, frozen))  # room for one
    for version, swapped in ((versions[0], True), (versions[0], False), (versions[1], True)):
        lease, made = weights.lease(version)
        assert made == swapped
        assert lease.size_bytes == weights.size_of(version) == size
        assert isinstance(lease.value, MergedWeights)
        expected = reference_logits(store, version.artifact, IMAGES)
        np.testing.assert_allclose(lease.value.run(IMAGES), expected, rtol=1e-5, atol=5e-5)
        assert lease.value.delta_sha256 == version.artifact.manifest.adapter.sha256
        assert not weights.fix(version)
        weights.cache.release(lease)
    assert weights.cache.sizes() == {versions[1]: size}
    assert (weights.swaps, weights.cache.evictions) == (2, 1)
