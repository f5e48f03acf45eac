from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from glora_deploy.backbones.load import Backbone
from glora_deploy.export.parity_check.torch_networks import (
    frozen_network,
    merged_network,
    supernet,
    torch_logits,
    write_reference,
)
from glora_deploy.merge.to_file import write_merged
from glora_deploy.precision import PRECISIONS
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from merged_networks import float64_merge
from stored_tasks import LABELS, make_backbone, make_stored_task

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1]}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": [2], "num_heads": [2], "embed_dim": 16, "window_size": 4},
    ),
}


def images_of(backbone: Backbone, n: int = 3) -> NDArray[np.float32]:
    shape = (n, *backbone.input_size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def weights_of(store: ArtifactStore, artifact: Artifact) -> Path:
    return store.backbone_path(artifact.manifest.backbone.fingerprint) / "model.safetensors"


def in_memory(backbone: Backbone, artifact: Artifact) -> torch.nn.Module:
    """The merged float64 network, whole and without files."""
    model = backbone.build(len(LABELS)).double()
    delta = {name: torch.from_numpy(t.copy()) for name, t in artifact.tensors().items()}
    head = {name: t for name, t in delta.items() if artifact.manifest.is_head(name)}
    model.load_state_dict({name: t.double() for name, t in head.items()}, strict=False)
    supports = {name: t for name, t in delta.items() if name not in head}
    return float64_merge(model, supports).eval()


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_reference_on_disk_is_the_float64_merge_bit_for_bit(tmp_path: Path, kind: str) -> None:
    name, model_args = NETWORKS[kind]
    backbone = make_backbone(name, **model_args)
    store, artifact = make_stored_task(tmp_path / "store", backbone=backbone)
    path = tmp_path / "reference.safetensors"
    write_reference(path, artifact, weights_of(store, artifact))
    expected = in_memory(backbone, artifact)
    state = expected.state_dict()
    found = load_file(path)
    assert found.keys() == state.keys()
    for key, tensor in found.items():
        assert tensor.dtype == state[key].dtype, key
        assert torch.equal(tensor, state[key]), key
    images = images_of(backbone)
    reference = merged_network(artifact.manifest, path)
    np.testing.assert_array_equal(torch_logits(reference)(images), torch_logits(expected)(images))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_supernet_and_the_merged_network_agree_for_every_kind_of_layer(
    tmp_path: Path, kind: str
) -> None:
    name, model_args = NETWORKS[kind]
    backbone = make_backbone(name, **model_args)
    store, artifact = make_stored_task(tmp_path, backbone=backbone)
    kinds = {record.kind for record in artifact.manifest.layers.values()}
    assert kinds >= {"conv", "affine"}
    images = images_of(backbone)
    merged = torch_logits(in_memory(backbone, artifact))(images)
    trained = torch_logits(supernet(artifact, weights_of(store, artifact)))(images)
    frozen = torch_logits(frozen_network(artifact, weights_of(store, artifact)))(images)
    # float32 sums of some hundred terms, a handful of layers deep
    np.testing.assert_allclose(trained, merged, atol=1e-4 * np.abs(merged).max())
    assert np.abs(merged - frozen).max() > 0.01 * np.abs(frozen).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_in_any_precision_is_a_network_even_once_it_is_deleted(
    tmp_path: Path, precision: str
) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    path = tmp_path / "model.safetensors"
    write_merged(
        path,
        weights_of(store, artifact),
        artifact.tensors(),
        artifact.manifest.shapes(),
        precision=precision,
        metadata={},
    )
    expected = {name: tensor.clone() for name, tensor in load_file(path).items()}
    network = merged_network(artifact.manifest, path)
    path.unlink()
    images = np.zeros((2, *artifact.manifest.backbone.input_size), np.float32)
    assert np.isfinite(torch_logits(network)(images)).all()
    found = network.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    with pytest.raises(RuntimeError, match="Missing key"):
        merged_network(artifact.manifest, weights_of(store, artifact))  # it has no classifier


def test_a_delta_that_holds_only_a_classifier_is_a_network_too(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    draft = artifact.manifest.model_copy(update={"layers": {}})
    head = {n: t for n, t in artifact.tensors().items() if draft.is_head(n)}
    probe = store.put("probe", head, draft)
    weights = weights_of(store, probe)
    images = np.zeros((1, *probe.manifest.backbone.input_size), np.float32)
    expected = torch_logits(frozen_network(probe, weights))(images)
    np.testing.assert_array_equal(torch_logits(supernet(probe, weights))(images), expected)
    write_reference(tmp_path / "reference.safetensors", probe, weights)
    reference = merged_network(probe.manifest, tmp_path / "reference.safetensors")
    np.testing.assert_allclose(torch_logits(reference)(images), expected, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_network_that_has_run_leaves_almost_nothing_of_its_file_in_memory(
    tmp_path: Path,
) -> None:
    backbone = make_backbone("vit_tiny_patch16_224", embed_dim=192, depth=6, num_heads=3)
    store, artifact = make_stored_task(tmp_path, backbone=backbone, kinds=["linear"])
    weights = weights_of(store, artifact)
    networks = [supernet(artifact, weights)]
    path = tmp_path / "merged.safetensors"
    write_reference(path, artifact, weights)
    networks.append(merged_network(artifact.manifest, path))
    for network, file in zip(networks, [weights, path], strict=True):
        assert np.isfinite(torch_logits(network)(images_of(backbone, 1))).all()
        assert resident_bytes(file) < 0.2 * file.stat().st_size


def resident_bytes(path: Path) -> int:
    """How much of a file's mappings is in this process's memory."""
    found = re.findall(
        rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s*(\d+) kB", Path("/proc/self/smaps").read_text()
    )
    assert found, f"{path} is not mapped"
    return 1024 * sum(map(int, found))
