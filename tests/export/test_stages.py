from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from glora_deploy.export.build import backbone_of
from glora_deploy.export.stages import TaskNetwork, in_batches, torch_logits, within
from stored_tasks import make_backbone, make_stored_task


@pytest.mark.parametrize(("least", "most"), [(1, 3), (4, 4), (5, 9)])
def test_batches_are_split_and_padded_to_what_a_stage_takes(least: int, most: int) -> None:
    seen = []

    def run(images: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(images))
        return images.reshape(len(images), -1)[:, :2] * 2

    images = np.arange(7 * 12, dtype=np.float32).reshape(7, 3, 2, 2)
    found = within(run, least, most)(images)
    np.testing.assert_array_equal(found, images.reshape(7, -1)[:, :2] * 2)
    assert all(least <= n <= most for n in seen)


def test_one_two_an_odd_and_full_batches_are_fed_in_order() -> None:
    seen = []

    def run(images: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(images))
        return images[:, 0, 0]

    images = np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1)
    np.testing.assert_array_equal(in_batches(run)(images)[:, 0], np.arange(40))
    assert seen == [1, 2, 3, 16, 16, 2]


def test_a_delta_that_holds_only_a_classifier_is_a_network_too(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    draft = artifact.manifest.model_copy(update={"layers": {}})
    head = {n: t for n, t in artifact.tensors().items() if draft.is_head(n)}
    probe = store.put("probe", head, draft)
    network = TaskNetwork.load(backbone_of(store, probe.manifest), probe)
    images = np.zeros((1, *network.backbone.input_size), np.float32)
    expected = torch_logits(network.unmerged())(images)
    np.testing.assert_array_equal(torch_logits(network.supernet())(images), expected)
    np.testing.assert_array_equal(torch_logits(network.merged(torch.float32))(images), expected)


@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
        ("resnet18", {"layers": [1, 1, 1, 1]}),
    ],
)
def test_the_supernet_and_the_merged_network_agree_for_every_kind_of_layer(
    tmp_path: Path, name: str, model_args: dict[str, Any]
) -> None:
    backbone = make_backbone(name, **model_args)
    store, artifact = make_stored_task(tmp_path, backbone=backbone)
    kinds = {record.kind for record in artifact.manifest.layers.values()}
    assert kinds >= {"conv", "affine"}
    network = TaskNetwork.load(backbone_of(store, artifact.manifest), artifact)
    images = np.random.default_rng(0).standard_normal((3, *backbone.input_size), np.float32)
    merged = torch_logits(network.merged(torch.float64))(images)
    supernet = torch_logits(network.supernet())(images)
    frozen = torch_logits(network.unmerged())(images)
    # float32 sums of some hundred terms, a handful of layers deep
    np.testing.assert_allclose(supernet, merged, atol=1e-4 * np.abs(merged).max())
    assert np.abs(merged - frozen).max() > 0.01 * np.abs(frozen).max()
