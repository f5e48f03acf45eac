"""Full fine-tunings made of random changes, taken apart and merged again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import (
    ArtifactError,
    BackboneMismatchError,
    NonFiniteError,
    StoreError,
)
from glora_deploy.export.importers.agreement import Networks
from glora_deploy.export.importers.assemble import store_import
from glora_deploy.export.importers.extract import Extraction, extract_full
from glora_deploy.export.importers.extract_choice import Choice
from glora_deploy.export.importers.full_checkpoint import Tuned, read_full, require_all
from glora_deploy.export.importers.low_rank import (
    Spectrum,
    ranks_for_energy,
    ranks_for_numbers,
    truncated,
)
from glora_deploy.store.store import ArtifactStore
from stored_tasks import make_backbone

N_CLASSES = 4
SWIN: dict[str, Any] = {
    "window_size": 4,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": (1, 1),
    "num_heads": (2, 4),
}
NOT_OF_LAYERS = ("pos_embed", "cls_token", "relative_position_bias_table")


def tune(backbone: Backbone, *, seed: int = 0, spare: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A state dict of which everything differs from the backbone but what is spared."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, tensor in backbone.build(N_CLASSES, seed=seed).state_dict().items():
        if name.endswith("num_batches_tracked"):
            tuned[name] = tensor + 7
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        change = 0.05 * noise if not name.endswith("running_var") else 0.5 * noise.abs()
        spared = name in backbone.tensors and any(part in name for part in spare)
        tuned[name] = tensor.clone() if spared else tensor + change
    return tuned


def read(path: Path, backbone: Backbone, tuned: dict[str, Tensor]) -> Tuned:
    save_file(tuned, path / "tuned.safetensors")
    return read_full(path / "tuned.safetensors", backbone)


def widths(extraction: Extraction) -> dict[str, int]:
    return {each.name: each.rank for each in extraction.layers}


@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("vit_tiny_patch16_224", {}),
        (
            "vit_tiny_patch16_224",
            {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.3},
        ),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("resnet10t", {"channels": (8, 16, 24, 32)}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}),
    ],
    ids=["vit", "layer-scale", "swin", "batch-norm", "convnext"],
)
def test_with_every_rank_the_delta_is_the_network(
    name: str, model_args: dict[str, Any], tmp_path: Path
) -> None:
    backbone = make_backbone(name, **model_args)
    tuned = read(tmp_path, backbone, tune(backbone, spare=NOT_OF_LAYERS))
    assert tuned.left_out == {}
    found = extract_full(tuned, backbone, Choice(energy=1.0))
    assert all(each.rank == each.full for each in found.layers)
    networks = Networks(backbone, tuned, found.imported)
    agreement = networks.on_random()
    assert agreement.same == 1.0
    assert agreement.largest < 1e-4
    vanilla = Networks(backbone, tuned, extract_full(tuned, backbone, Choice(rank=1)).imported)
    assert vanilla.on_random().largest > 100 * agreement.largest  # so the test can tell


def test_layer_scale_goes_into_the_layer_that_it_scales(tmp_path: Path) -> None:
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.3}
    backbone = make_backbone(**args)
    everything = tune(backbone)
    own = backbone.build(N_CLASSES).state_dict()
    changed = {
        name: everything[name] if "ls2.gamma" in name or name.startswith("head.") else own[name]
        for name in own
    }
    tuned = read(tmp_path, backbone, changed)
    found = extract_full(tuned, backbone, Choice(energy=1.0))
    assert [each.name for each in found.layers] == ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    assert set(found.imported.layers) == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    assert Networks(backbone, tuned, found.imported).on_random().largest < 1e-4


def test_a_layer_scale_of_zero_cannot_be_made_up_for(tmp_path: Path) -> None:
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.3}
    backbone = make_backbone(**args)
    backbone.tensors["blocks.1.ls1.gamma"][5] = 0
    tuned = read(tmp_path, backbone, tune(backbone, spare=NOT_OF_LAYERS))
    assert list(tuned.left_out) == ["blocks.1.ls1.gamma"]


def test_what_did_not_change_stores_nothing(tmp_path: Path) -> None:
    backbone = make_backbone()
    state = backbone.build(N_CLASSES, seed=3).state_dict()
    state["blocks.1.mlp.fc1.bias"] = state["blocks.1.mlp.fc1.bias"] + 1
    found = extract_full(read(tmp_path, backbone, state), backbone, Choice(energy=0.9))
    assert found.layers == ()
    assert found.energy == 1.0
    assert {n: t.shape for n, t in found.imported.tensors.items() if "head" not in n} == {
        "blocks.1.mlp.fc1.E": (192,)
    }


def test_a_fixed_rank_is_that_of_every_layer(tmp_path: Path) -> None:
    backbone = make_backbone()
    tuned = read(tmp_path, backbone, tune(backbone, spare=NOT_OF_LAYERS))
    found = extract_full(tuned, backbone, Choice(rank=5))
    assert set(widths(found).values()) == {5}
    layer = "blocks.0.attn.qkv"
    change = tuned.layers[layer][0] - backbone.tensors[f"{layer}.weight"].double().numpy()
    kept = found.imported.tensors[f"{layer}.B_d"] @ found.imported.tensors[f"{layer}.B_u"]
    values = np.linalg.svd(change, compute_uv=False)
    # Eckart and Young: no approximation of this rank is nearer.
    lost = np.linalg.norm(change - kept)
    np.testing.assert_allclose(lost, np.sqrt((values[5:] ** 2).sum()), rtol=1e-5)
    told = next(each for each in found.layers if each.name == layer)
    np.testing.assert_allclose(told.energy, 1 - (lost / np.linalg.norm(change)) ** 2, rtol=1e-5)
    assert told.needed[0] == int(np.argmax(np.cumsum(values**2) >= 0.9 * (values**2).sum())) + 1


@pytest.mark.parametrize("extra_bytes", [0, 5_000, 40_000])
def test_a_budget_is_kept_by_the_file_itself(tmp_path: Path, extra_bytes: int) -> None:
    backbone = make_backbone()
    tuned = read(tmp_path, backbone, tune(backbone, spare=NOT_OF_LAYERS))
    with pytest.raises(ValueError, match="budget must be at least") as caught:
        extract_full(tuned, backbone, Choice(budget_bytes=100))
    least = int(str(caught.value).partition("at least ")[2].partition(" ")[0].replace(",", ""))
    found = extract_full(tuned, backbone, Choice(budget_bytes=least + extra_bytes))
    store = ArtifactStore.create(tmp_path / "artifacts")
    artifact = store_import(store, backbone, found.imported, task="pets")
    size = (artifact.path / "adapter.safetensors").stat().st_size
    assert size <= least + extra_bytes
    assert (sum(widths(found).values()) > 0) == (extra_bytes > 0)
    cheapest = 4 * min(sum(each) for each in _shapes(backbone))
    spent = 4 * sum(
        each.size for name, each in found.imported.tensors.items() if name.endswith(("_d", "_u"))
    )
    assert extra_bytes - cheapest < spent <= extra_bytes


def _shapes(backbone: Backbone) -> list[tuple[int, int]]:
    return [
        (tensor.shape[0], tensor[0].numel())
        for name, tensor in backbone.tensors.items()
        if name.endswith("weight") and tensor.ndim > 1
    ]


def make_spectra(costs: list[tuple[int, int]], *, seed: int) -> dict[str, Spectrum]:
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": Spectrum(np.sort(rng.exponential(size=4))[::-1], shape)
        for i, shape in enumerate(costs)
    }


@pytest.mark.parametrize("seed", range(8))
def test_no_other_ranks_of_the_same_cost_keep_more(seed: int) -> None:
    spectra = make_spectra([(3, 5), (3, 5), (4, 4)], seed=seed)  # all cost 8 numbers
    for n_ranks in range(13):
        chosen = ranks_for_numbers(spectra, 8 * n_ranks + 7)
        assert sum(chosen.values()) == n_ranks
        best = max(
            _kept(spectra, dict(zip(spectra, ranks, strict=True)))
            for ranks in itertools.product(range(5), repeat=3)
            if sum(ranks) == n_ranks
        )
        assert _kept(spectra, chosen) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_an_energy_is_reached_and_not_by_more_than_it_takes(seed: int, share: float) -> None:
    spectra = make_spectra([(3, 5), (6, 10), (4, 40)], seed=seed)
    total = sum(each.energy for each in spectra.values())
    chosen = ranks_for_energy(spectra, share)
    assert _kept(spectra, chosen) >= share * total * (1 - 1e-12)
    numbers = sum(spectra[layer].numbers * rank for layer, rank in chosen.items())
    cheapest = min(
        sum(spectra[layer].numbers * rank for layer, rank in ranks.items())
        for each in itertools.product(range(5), repeat=3)
        if _kept(spectra, ranks := dict(zip(spectra, each, strict=True))) >= share * total
    )
    largest = max(each.numbers for each in spectra.values())
    assert cheapest <= numbers < cheapest + largest  # at most one value beyond the optimum


def _kept(spectra: dict[str, Spectrum], ranks: dict[str, int]) -> float:
    return sum(float((spectra[layer].values[:rank] ** 2).sum()) for layer, rank in ranks.items())


def test_rounding_is_no_rank() -> None:
    rng = np.random.default_rng(0)
    change = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30))
    assert len(Spectrum.of(change.astype(np.float32).astype(np.float64)).values) == 3
    down, up = truncated(change, 3)
    np.testing.assert_allclose(down @ up, change, atol=1e-12)
    assert np.linalg.norm(down) == pytest.approx(np.linalg.norm(up))


def test_what_no_layer_can_take_over_is_named(tmp_path: Path) -> None:
    backbone = make_backbone()
    changed = tune(backbone)
    tuned = read(tmp_path, backbone, changed)
    assert sorted(tuned.left_out) == ["cls_token", "pos_embed"]
    own = backbone.tensors["pos_embed"]
    share = float((changed["pos_embed"] - own).norm() / own.norm())
    assert tuned.left_out["pos_embed"] == pytest.approx(share, rel=1e-5)
    with pytest.raises(ArtifactError, match=r"cls_token \(.*%\), pos_embed .*--leave-out"):
        require_all(tuned)
    found = extract_full(tuned, backbone, Choice(energy=1.0))
    assert found.imported.origin["left_out"] == ["cls_token", "pos_embed"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_trainers_save_is_read(tmp_path: Path, wrapped: bool) -> None:
    backbone = make_backbone()
    state: dict[str, Any] = tune(backbone, spare=NOT_OF_LAYERS)
    if wrapped:
        state = {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}
    torch.save(state, tmp_path / "last.pth.tar")
    tuned = read_full(tmp_path / "last.pth.tar", backbone)
    assert tuned.where == "last.pth.tar"
    assert len(tuned.head["head.weight"]) == N_CLASSES


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda s: s.pop("norm.weight"), BackboneMismatchError, "norm.weight must have .* missing"),
        (
            lambda s: s.update({"pos_embed": torch.zeros(1, 5, 48)}),
            BackboneMismatchError,
            r"pos_embed must have shape .*got \(1, 5, 48\).*--input-size",
        ),
        (
            lambda s: s.update({"fc_norm.weight": torch.ones(48)}),
            BackboneMismatchError,
            "fc_norm.weight is no tensor of the backbone",
        ),
        (
            lambda s: s["blocks.0.norm1.bias"].fill_(float("nan")),
            NonFiniteError,
            "blocks.0.norm1.bias must be finite",
        ),
        (
            lambda s: [s.pop(name) for name in ("head.weight", "head.bias")],
            BackboneMismatchError,
            "must hold the network and its classifier head",
        ),
        (lambda s: s.clear(), BackboneMismatchError, "must hold the network"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    backbone = make_backbone()
    state = tune(backbone)
    change(state)
    with pytest.raises(error, match=said):
        read(tmp_path, backbone, state)


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no\.pth"):
        read_full(tmp_path / "no.pth", make_backbone())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "exactly one"),
        ({"energy": 0.9, "rank": 3}, "exactly one"),
        ({"energy": 1.1}, "energy must be above 0 and at most 1, got 1.1"),
        ({"energy": 0.0}, "energy must be above 0"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Choice(**settings)
