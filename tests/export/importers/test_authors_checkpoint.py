"""Checkpoints laid out as the authors', against their formula written out once more."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, StoreError
from glora_deploy.export.importers.assemble import Imported, store_import
from glora_deploy.export.importers.authors_checkpoint import import_glora, read_checkpoint
from glora_deploy.store.store import ArtifactStore
from stored_tasks import make_backbone, merged_state

RANK = 4
N_CLASSES = 3
ATOL = 1e-13  # float64, sums of up to 192 terms of size one
LAYERS = [
    f"blocks.{block}.{layer}"
    for block in range(2)
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]
"""In the order of the network's modules, which is that of the authors' lists."""
FORMS = {
    "A": [f"LoRA_{RANK}", "LoRA_2", "vector", "constant", "none"],
    "B": [f"LoRA_{RANK}", "LoRA_2", "vector", "constant", "none"],
    "C": [f"LoRA_{RANK}", "LoRA_2", "vector", "none"],
    "D": ["constant", "none", "vector"],
    "E": ["constant", "none", "vector"],
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def make_checkpoint(backbone: Backbone, *, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors named and shaped as the release saves them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    tensors: dict[str, Tensor] = {}
    for layer in LAYERS:
        d_out, d_in = backbone.tensors[f"{layer}.weight"].shape
        for letter in "AB":
            tensors[f"{layer}.{letter}d"] = draw(d_out, RANK)
            tensors[f"{layer}.{letter}u"] = draw(RANK, d_in)
        tensors[f"{layer}.Cd"], tensors[f"{layer}.Cu"] = draw(d_in, RANK), draw(RANK, 1)
        tensors[f"{layer}.D"], tensors[f"{layer}.E"] = draw(d_out), draw(d_out)
    return tensors | {"head.weight": draw(N_CLASSES, 48), "head.bias": draw(N_CLASSES)}


def make_choices(seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [{letter: rng.choice(forms) for letter, forms in FORMS.items()} for _ in LAYERS]


def saved(folder: Path, checkpoint: dict[str, Any], choices: object) -> tuple[Path, Path]:
    torch.save(checkpoint, folder / "cifar.pt")
    (folder / "subnet.json").write_text(json.dumps(choices))
    return folder / "cifar.pt", folder / "subnet.json"


def imported_from(
    folder: Path, backbone: Backbone, checkpoint: dict[str, Any], choices: object
) -> Imported:
    path, subnet = saved(folder, checkpoint, choices)
    return import_glora(read_checkpoint(path, subnet), backbone)


def reference(
    w0: NDArray[np.float64], b0: NDArray[np.float64], x: dict[str, Any], choice: dict[str, str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``w0 + w0 * A + B`` and ``b0 + b0 * D + E + w0 @ C``, with the release's slices."""

    def matrix(letter: str) -> Any:
        down, up = x[f"{letter}d"], x[f"{letter}u"]
        form = choice[letter]
        if form.startswith("LoRA_"):
            rank = int(form[5:])
            return down[:, :rank] @ up[:rank, :]
        return {"vector": down[:, [0]], "constant": down[0, 0], "none": 0.0}[form]

    def entry(letter: str) -> Any:
        value = x[letter]
        return {"vector": value, "constant": value[0], "none": 0.0}[choice[letter]]

    c = matrix("C")
    prompt = 0.0 if choice["C"] == "none" else (w0 @ c)[:, 0]
    return w0 + w0 * matrix("A") + matrix("B"), b0 + b0 * entry("D") + entry("E") + prompt


@pytest.mark.parametrize("seed", range(4))
def test_an_imported_subnet_computes_the_authors_formula(
    backbone: Backbone, tmp_path: Path, seed: int
) -> None:
    checkpoint, choices = make_checkpoint(backbone, seed=seed), make_choices(seed)
    imported = imported_from(tmp_path, backbone, checkpoint, choices)
    store = ArtifactStore.create(tmp_path / "store")
    merged = merged_state(store, store_import(store, backbone, imported, task="cifar"))
    for layer, choice in zip(LAYERS, choices, strict=True):
        w0, b0 = (
            backbone.tensors[f"{layer}.{leaf}"].double().numpy() for leaf in ("weight", "bias")
        )
        own = {
            name.rpartition(".")[2]: tensor.double().numpy()
            for name, tensor in checkpoint.items()
            if name.startswith(f"{layer}.")
        }
        weight, bias = reference(w0, b0, own, choice)
        # float64 sums of up to 192 terms
        np.testing.assert_allclose(
            merged[f"{layer}.weight"].numpy(), weight, rtol=1e-12, atol=1e-14
        )
        np.testing.assert_allclose(merged[f"{layer}.bias"].numpy(), bias, rtol=1e-12, atol=1e-14)
    for name in ("head.weight", "head.bias"):
        assert torch.equal(merged[name], checkpoint[name].double())
    for name in ("norm.weight", "patch_embed.proj.weight", "blocks.0.norm1.bias"):
        assert torch.equal(merged[name], backbone.tensors[name].double())


def test_a_subnet_is_the_same_in_all_three_forms(backbone: Backbone, tmp_path: Path) -> None:
    choices = make_choices()
    checkpoint, as_list = saved(tmp_path, make_checkpoint(backbone), choices)
    expected = import_glora(read_checkpoint(checkpoint, as_list), backbone)
    lines = [
        f"{layer}: "
        + " ".join(
            f"{letter}={form.replace('LoRA_', 'lora:').replace('constant', 'scalar')}"
            for letter, form in choice.items()
        )
        for layer, choice in zip(LAYERS, choices, strict=True)
    ]
    as_text = tmp_path / "subnet.txt"
    as_text.write_text("\n".join(reversed(lines)))
    as_search = tmp_path / "checkpoint-20.pth.tar"
    other = tuple(make_choices(9))
    state = {
        "top_accuracies": [[81.5, 80.0]],
        "vis_dict": {str(other): {"params": 0.5, "acc": 80.0, "visited": True}},
        "keep_top_k": {10: [tuple(choices), other], 50: [tuple(choices), other]},
        "epoch": 20,
    }
    torch.save(state, as_search)
    for form in (as_text, as_search):
        found = import_glora(read_checkpoint(checkpoint, form), backbone)
        assert found.layers == expected.layers
        assert found.tensors.keys() == expected.tensors.keys()
        for name, tensor in expected.tensors.items():
            assert np.array_equal(found.tensors[name], tensor)


def test_only_what_the_subnet_uses_is_kept(backbone: Backbone, tmp_path: Path) -> None:
    none = dict.fromkeys("ABCDE", "none")
    choices = [none] * len(LAYERS)
    choices[2] = {**none, "A": "LoRA_2", "D": "constant"}
    imported = imported_from(tmp_path, backbone, make_checkpoint(backbone), choices)
    assert {name: tensor.shape for name, tensor in imported.tensors.items()} == {
        "blocks.0.mlp.fc1.A_d": (192, 2),
        "blocks.0.mlp.fc1.A_u": (2, 48),
        "blocks.0.mlp.fc1.D": (1,),
        "head.weight": (3, 48),
        "head.bias": (3,),
    }
    assert list(imported.layers) == ["blocks.0.mlp.fc1"]
    assert imported.origin == {"imported_from": "GLoRA release: cifar.pt"}


def test_a_layer_without_bias_takes_no_subnet_that_would_give_it_one(tmp_path: Path) -> None:
    backbone = make_backbone(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, qkv_bias=False
    )
    choices = [dict.fromkeys("ABCDE", "vector")] * len(LAYERS)
    with pytest.raises(ArtifactError, match=r"attn\.qkv: C=vector would give a bias to a layer"):
        imported_from(tmp_path, backbone, make_checkpoint(backbone), choices)
    for i in (0, 4):
        choices[i] = {**choices[i], "C": "none", "E": "none"}
    imported = imported_from(tmp_path, backbone, make_checkpoint(backbone), choices)
    assert str(imported.layers["blocks.0.attn.qkv"].layer_paths()) == (
        "A=vector B=vector C=none D=none E=none"
    )


# Refusals


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_lycoris_is_refused_with_the_reason(
    backbone: Backbone, tmp_path: Path, suffix: str
) -> None:
    names = [f"lora_unet_blocks_0_attn_qkv.{n}.weight" for n in ("a1", "a2", "b1", "b2")]
    tensors = {name: torch.zeros(2, 2) for name in names} | {"x.alpha": torch.ones(())}
    path = tmp_path / f"lycoris{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    with pytest.raises(ArtifactError, match=r"a1\.weight is LyCORIS' GLoRA, another formula: it"):
        import_glora(read_checkpoint(path, tmp_path / "subnet"), backbone)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_code_in_a_checkpoint_is_not_run(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"head.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ArtifactError, match="must hold tensors and plain values only") as caught:
        import_glora(read_checkpoint(tmp_path / "evil.pt", tmp_path / "subnet"), backbone)
    assert "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"blocks.0.attn.qkv.Xd": (2, 2)}, ArtifactError, "blocks.0.attn.qkv.Xd must be a support"),
        ({"blocks.0.attn.qkv.Cu": None}, ArtifactError, "blocks.0.attn.qkv must have Cu"),
        ({"blocks.9.attn.qkv.Ad": (2, 2)}, BackboneMismatchError, "blocks.9.attn.qkv must be a"),
        ({"norm.D": (48,)}, BackboneMismatchError, "norm must be a linear layer of the backbone"),
        ({"head.weight": None}, BackboneMismatchError, "must hold the classifier's head.weight"),
        (
            {"head.weight": (3, 40)},
            BackboneMismatchError,
            "head.weight is (3, 40), the backbone's",
        ),
        (
            {"blocks.0.attn.qkv.Au": (4, 40)},
            BackboneMismatchError,
            "blocks.0.attn.qkv.Au must have shape (4, 48) to fit the backbone's (144, 48), got (4,",
        ),
        (
            {"blocks.1.mlp.fc2.E": (1, 48)},
            BackboneMismatchError,
            "blocks.1.mlp.fc2.E must have shape (48,) to fit",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    backbone: Backbone,
    tmp_path: Path,
    change: dict[str, tuple[int, ...] | None],
    error: type[Exception],
    message: str,
) -> None:
    checkpoint = make_checkpoint(backbone)
    for name, shape in change.items():
        if shape is None:
            del checkpoint[name]
        else:
            checkpoint[name] = torch.zeros(shape)
    with pytest.raises(error, match=re.escape(message)):
        imported_from(tmp_path, backbone, checkpoint, make_choices())


ALL = dict.fromkeys("ABCDE", "vector")


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ([ALL] * 7, BackboneMismatchError, "one choice for each of the 8 layers, got 7"),
        ([{**ALL, "A": "LoRA_5"}] * 8, ArtifactError, "A=lora:5 must be of a rank up to 4, which"),
        ([{**ALL, "A": "LoRA_0"}] * 8, ArtifactError, "A cannot be 'LoRA_0'"),
        ([{**ALL, "C": "constant"}] * 8, ArtifactError, "C cannot be 'constant'"),
        ([{**ALL, "E": "LoRA_4"}] * 8, ArtifactError, "E cannot be 'LoRA_4'"),
        ([{"A": "vector"}] * 8, ArtifactError, "a choice must have A to E, got {'A': 'vector'}"),
        ({"A": "vector"}, ArtifactError, "must be a subnet: supports are A to E"),
    ],
)
def test_a_subnet_that_does_not_fit_is_refused(
    backbone: Backbone, tmp_path: Path, choices: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        imported_from(tmp_path, backbone, make_checkpoint(backbone), choices)


def test_files_that_are_missing_or_hold_something_else_are_named(
    backbone: Backbone, tmp_path: Path
) -> None:
    checkpoint, subnet = saved(tmp_path, make_checkpoint(backbone), make_choices())
    with pytest.raises(StoreError, match=r"gone\.pt: must be a file"):
        import_glora(read_checkpoint(tmp_path / "gone.pt", subnet), backbone)
    with pytest.raises(StoreError, match=r"gone: must be a file, none is here\. Give the chosen"):
        import_glora(read_checkpoint(checkpoint, tmp_path / "gone"), backbone)
    subnet.write_text("blocks.0.attn.qkv: A=lora:4\n")
    with pytest.raises(BackboneMismatchError, match="the checkpoint differ in 7 layers: blocks"):
        import_glora(read_checkpoint(checkpoint, subnet), backbone)
    torch.save({"epoch": 3}, subnet)
    with pytest.raises(ArtifactError, match="must hold keep_top_k with a candidate"):
        import_glora(read_checkpoint(checkpoint, subnet), backbone)
    torch.save([torch.zeros(1)], checkpoint)
    with pytest.raises(ArtifactError, match="must hold a mapping, got a list"):
        import_glora(read_checkpoint(checkpoint, subnet), backbone)
    torch.save({"epoch": 3, "head.weight": torch.zeros(1)}, checkpoint)
    with pytest.raises(ArtifactError, match="must map names to tensors"):
        import_glora(read_checkpoint(checkpoint, subnet), backbone)
    checkpoint.write_bytes(b"PK not a checkpoint")
    with pytest.raises(ArtifactError, match=r"cifar\.pt: must be weights, got a zip archive cut"):
        import_glora(read_checkpoint(checkpoint, subnet), backbone)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "labels must have one entry for each of the 3 classes, got 0"),
        (("a", "b"), "labels must have one entry for each of the 3 classes, got 2"),
        (("", "b", "c"), "labels: the name of class 0 must be 1 to 200 characters of UTF-8 on one"),
        (("a", "b" * 201, "c"), "labels: the name of class 1 must be 1 to 200 characters"),
        (("a", "b", "c\td"), r"labels: the name of class 2 must be .* on one line, got 'c\\td'"),
    ],
)
def test_class_names_that_cannot_be_stored_are_refused_in_our_own_words(
    backbone: Backbone, tmp_path: Path, labels: tuple[str, ...], message: str
) -> None:
    imported = imported_from(tmp_path, backbone, make_checkpoint(backbone, seed=0), make_choices(0))
    store = ArtifactStore.create(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        store_import(store, backbone, imported, task="cifar", labels=labels)
    assert store.tasks() == []
