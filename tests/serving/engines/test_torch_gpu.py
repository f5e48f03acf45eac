"""A task merged by the network itself, and run in its place: the arithmetic needs no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from glora_deploy.errors import BackboneMismatchError, NonFiniteError
from glora_deploy.glora.forms import LayerShape
from glora_deploy.serving.engines.network import MergingNetwork
from glora_deploy.serving.engines.torch_gpu import TorchGpuNetwork, merge_bias, merge_weight
from glora_deploy.serving.tasks.merge_task import adapted_tensors
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.store.store import ArtifactStore
from layers import every_paths
from marked_tasks import reference_logits
from reference import reference_merge
from stored_tasks import make_backbone, make_stored_task

ATOL = 5e-5  # float32; logits near 1
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)


def opened(store: ArtifactStore, artifact: Artifact) -> TorchGpuNetwork:
    manifest = artifact.manifest
    frozen = map_tensors(store.backbone_path(manifest.backbone.fingerprint) / "model.safetensors")
    return TorchGpuNetwork(manifest, frozen, adapted=adapted_tensors(manifest), device="cpu")


@pytest.mark.parametrize("name", ["vit", "resnet10t"])
def test_tasks_in_turn_answer_as_their_merged_networks(name: str, tmp_path: Path) -> None:
    backbone = None if name == "vit" else make_backbone(name)
    store, first = make_stored_task(tmp_path / "artifacts", "one", backbone=backbone, seed=1)
    _, second = make_stored_task(tmp_path / "artifacts", "two", backbone=backbone, seed=2)
    network = opened(store, first)
    assert isinstance(network, MergingNetwork)
    weights = {a.task: network.merge(a.manifest, a.tensors()) for a in (first, second)}
    answers = {}
    for artifact in (first, second, first):
        found = network.run(weights[artifact.task], IMAGES)
        expected = reference_logits(store, artifact, IMAGES)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=ATOL)
        answers[artifact.task] = found
    assert not np.allclose(answers["one"], answers["two"], atol=100 * ATOL)
    held = weights["one"].slots.nbytes
    assert network.size_of(first.manifest) == held + 4 * first.manifest.n_head_parameters
    n_adapted = sum(
        shape.d_out * (shape.d_in + shape.bias) for shape in first.manifest.shapes().values()
    )
    assert 4 * n_adapted <= held < 4 * n_adapted + 256 * len(first.manifest.layers) * 2


@pytest.mark.parametrize("has_bias", [True, False])
def test_every_combination_of_forms_is_the_formula(has_bias: bool) -> None:
    rng = np.random.default_rng(0)
    shape = LayerShape(kind="linear", d_out=7, d_in=5, bias=has_bias)
    w0 = rng.standard_normal((7, 5)).astype(np.float32)
    b0 = rng.standard_normal(7).astype(np.float32) if has_bias else None
    n_cases = 0
    for forms in every_paths(shape, ranks=(3,)):
        supports = {
            name: rng.standard_normal(size).astype(np.float32)
            for support, form in forms.items()
            for name, size in shape.tensor_shapes(support, form).items()
        }
        expected_w, expected_b = reference_merge(w0, b0, supports)
        tensors = {name: torch.from_numpy(value) for name, value in supports.items()}
        frozen = torch.from_numpy(w0)
        found = torch.full((7, 5), np.nan)
        merge_weight(frozen, tensors, found)
        # Sums of at most three products and the weight, whose terms are some units.
        np.testing.assert_allclose(found.numpy(), expected_w, rtol=2e-6, atol=5e-6)
        if b0 is not None and expected_b is not None:
            shifted = torch.full((7,), np.nan)
            merge_bias(frozen, torch.from_numpy(b0), tensors, shifted)
            np.testing.assert_array_equal(shifted.numpy(), expected_b.astype(np.float32))
        n_cases += 1
    assert n_cases == (4 * 4 * 3 * 3 * 3 if has_bias else 4 * 4)


def test_a_delta_that_does_not_fit_or_is_not_finite_gives_no_weights(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path / "artifacts", "one", seed=1)
    network, manifest, delta = opened(store, artifact), artifact.manifest, artifact.tensors()
    name = next(name for name in delta if name.endswith(".B_u"))
    with pytest.raises(BackboneMismatchError, match=f"^{name.rpartition('.')[0]}: B_u must"):
        network.merge(manifest, {**delta, name: delta[name][:, 1:]})
    with pytest.raises(NonFiniteError, match="must be finite when merged"):
        network.merge(manifest, {**delta, name: delta[name] * np.float32(np.inf)})
    layers = {f"{layer}x": record for layer, record in manifest.layers.items()}
    with pytest.raises(BackboneMismatchError, match=r"the backbone must have patch_embed\.projx"):
        network.merge(manifest.model_copy(update={"layers": layers}), delta)
