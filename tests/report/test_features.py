"""What reaches the classifier, held against the logits that come out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.evaluation.delta_network import DeltaNetwork, frozen_network
from glora_deploy.report.features import frozen_and_merged_features
from stored_tasks import make_backbone, make_stored_task
from tasks import make_images

ATOL = 1e-4  # float32, sums of some hundred


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet"])
def test_the_classifier_makes_the_networks_logits_of_them(tmp_path: Path, name: str) -> None:
    store, artifact = make_stored_task(tmp_path, backbone=make_backbone(name))
    images, told = make_images(40, seed=3), []
    frozen, merged = frozen_and_merged_features(
        store, artifact, images, report=lambda *progress: told.append(progress)
    )
    manifest = artifact.manifest
    preprocessing = Preprocessing(**manifest.preprocessing.model_dump())
    x = preprocess_batch((images.image(i) for i in range(40)), preprocessing)
    head = {
        key.rpartition(".")[2]: value
        for key, value in artifact.tensors().items()
        if manifest.is_head(key)
    }

    def logits(features: np.ndarray) -> np.ndarray:
        return features @ head["weight"].T + head["bias"]

    network = DeltaNetwork(store, artifact)
    np.testing.assert_allclose(logits(merged), network.logits(x), atol=ATOL)
    with torch.inference_mode():
        expected = frozen_network(store, artifact)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(logits(frozen), expected, atol=ATOL)
    assert not np.allclose(frozen, merged, atol=1e-2)
    assert told[-1] == (80, 80)


def test_of_maps_the_mean_over_their_pixels_is_taken() -> None:
    from glora_deploy.report.features import _Seen

    pool = torch.nn.AdaptiveAvgPool2d(1)
    seen = _Seen(pool)
    maps = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    pool(maps)
    np.testing.assert_allclose(seen.features(), pool(maps)[:, :, 0, 0].numpy(), atol=1e-6)
