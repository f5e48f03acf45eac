"""What each folded method leaves in a store: it is small, exported and packed as any delta."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glora_deploy.errors import ArtifactError
from glora_deploy.export import export
from glora_deploy.glora.shared_factors import shared_shapes
from glora_deploy.packs.pack import pack
from glora_deploy.packs.unpack import unpack
from glora_deploy.store.artifact import Artifact, read_artifact
from glora_deploy.store.manifest import HEADER_BYTES, Manifest
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline, train
from glora_deploy.training.method import FoldedMethod
from glora_deploy.training.methods import METHODS
from tasks import make_task, use_small_backbone

FOLDED = sorted(name for name, each in METHODS.items() if isinstance(each, FoldedMethod))
SHARED = ("fact-tt", "fact-tk")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """One version by each method, called as the method is."""
    root = tmp_path_factory.mktemp("methods") / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
        use_small_backbone(patch)
        for name in FOLDED:
            ranks = None if METHODS[name].rank is None else (4,)
            (outcome,) = train(
                "digits",
                method=name,
                version=name,
                ranks=ranks,
                epochs=8,
                batch_size=12,
                store=root,
            )
            assert outcome.val_accuracy > 0.6, name  # of three colours
            assert outcome.n_parameters == outcome.artifact.manifest.n_parameters
    return ArtifactStore.open(root)


@pytest.mark.parametrize("name", FOLDED)
def test_a_manifest_says_which_method_and_only_what_it_has(store: ArtifactStore, name: str) -> None:
    training = store.get("digits", name).manifest.training
    assert training.method == name
    assert ("ranks" in training.settings) == (METHODS[name].rank is not None)
    assert ("scale" in training.settings) == (METHODS[name].scale is not None)
    assert "supernet_share" not in training.settings


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_exported_is_proven_equal_to_it(store: ArtifactStore, name: str) -> None:
    done = export("digits", version=name, fmt=["onnx", "delta"], store=store.root, images=4)
    assert done.report.passed
    assert {"merged", "onnx", "delta"} <= set(done.record.formats)


@pytest.mark.parametrize("name", SHARED)
def test_shared_factors_are_stored_once(store: ArtifactStore, name: str) -> None:
    artifact = store.get("digits", name)
    manifest = artifact.manifest
    assert manifest.shared is not None
    shapes = shared_shapes(manifest.shared.kind, manifest.shared.rank, manifest.shapes())
    assert set(artifact.stored_tensors()) == {*shapes, *manifest.head}
    assert set(artifact.tensors()) == {*manifest.support_shapes(), *manifest.head}
    assert manifest.n_parameters == sum(int(np.prod(shape)) for shape in shapes.values())
    assert manifest.n_parameters * 3 < manifest.subnet().n_parameters(manifest.shapes())
    n_bytes = 4 * (manifest.n_parameters + manifest.n_head_parameters)
    assert (artifact.path / "adapter.safetensors").stat().st_size <= n_bytes + HEADER_BYTES


@pytest.mark.parametrize("name", SHARED)
def test_they_stay_shared_wherever_the_delta_goes(
    store: ArtifactStore, name: str, tmp_path: Path
) -> None:
    artifact = store.get("digits", name)
    pack(store, [("digits", name)], tmp_path / "one.pack")
    other = ArtifactStore.create(tmp_path / "other")
    unpack(other, tmp_path / "one.pack", as_task="numbers")
    assert_same(other.get("numbers", name), artifact)
    done = export("digits", version=name, fmt="delta", precision="fp16", store=store.root, images=2)
    half = read_artifact(done.folder / "delta")
    assert half.manifest.shared == artifact.manifest.shared
    assert half.manifest.dtype == "float16"
    for key, tensor in half.tensors().items():
        np.testing.assert_allclose(tensor, artifact.tensors()[key], rtol=0.01, atol=0.01)


def assert_same(found: Artifact, expected: Artifact) -> None:
    assert found.manifest.shared == expected.manifest.shared
    for key, tensor in expected.stored_tensors().items():
        assert np.array_equal(found.stored_tensors()[key], tensor), key


def test_deltas_without_shared_factors_are_stated_as_they_always_were(store: ArtifactStore) -> None:
    stated = (store.get("digits", "ssf").path / "manifest.json").read_bytes()
    assert b'"shared"' not in stated
    assert b'"shared"' in (store.get("digits", "fact-tt").path / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"rank": 4', b'"rank": 3', "share factors must all have B=lora:3"),
        (b'"tensor-train"', b'"tensor-chain"', "tensor-train"),
        (b'"B": "lora:4"', b'"B": "lora:2"', "share factors must all have B=lora:4"),
        (b'"E": "none"', b'"E": "vector"', "share factors must all have B=lora:4"),
    ],
)
def test_a_manifest_whose_layers_cannot_share_is_refused(
    store: ArtifactStore, old: bytes, new: bytes, said: str
) -> None:
    stated = (store.get("digits", "fact-tt").path / "manifest.json").read_bytes()
    assert old in stated
    with pytest.raises(ArtifactError, match=said):
        Manifest.from_json(stated.replace(old, new, 1))
