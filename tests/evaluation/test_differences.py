"""What is listed as different between manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import LAYERS, make_draft, make_store, make_tensors
from glora_deploy.evaluation.differences import differences, forms_by_type, layer_type
from glora_deploy.glora.forms import LayerShape
from glora_deploy.store.manifest import Manifest, ManifestDraft

QKV = LayerShape(kind="linear", d_out=15, d_in=5, bias=True)


def stored(root: Path, *drafts: ManifestDraft) -> list[Manifest]:
    store = make_store(root)
    return [store.put("pets", make_tensors(draft), draft).manifest for draft in drafts]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("blocks.11.mlp.fc1", "blocks.*.mlp.fc1"),
        ("layers.0.blocks.10.norm1", "layers.*.blocks.*.norm1"),
        ("conv1", "conv1"),
        ("0", "*"),
    ],
)
def test_a_type_of_layer_leaves_out_the_depth(layer: str, expected: str) -> None:
    assert layer_type(layer) == expected


def test_forms_are_counted_by_type_of_layer_and_support(tmp_path: Path) -> None:
    layers = {f"blocks.{i}.attn.qkv": (QKV, f"A={'lora:2' if i else 'vector'}") for i in range(3)}
    one, other = stored(tmp_path, make_draft(layers), make_draft())
    assert forms_by_type(one)["blocks.*.attn.qkv"]["A"] == {"lora:2": 2, "vector": 1}
    found = {d.what: d.values for d in differences([one, other])}
    assert found["blocks.*.attn.qkv A"] == ("lora:2 x2, vector x1", "lora:3")
    assert found["patch_embed.proj A"] == ("", "vector")
    assert found.keys() == {
        *(f"blocks.*.attn.qkv {support}" for support in "ABCDE"),
        *(
            f"{name} {support}"
            for name in ("patch_embed.proj", "blocks.*.norm1")
            for support in "ABCDE"
        ),
    }


def test_the_same_manifest_twice_has_no_difference(tmp_path: Path) -> None:
    assert differences(stored(tmp_path, make_draft(), make_draft())) == ()


def test_every_part_of_how_it_was_trained_is_looked_at(tmp_path: Path) -> None:
    draft = make_draft()
    training = draft.training.model_copy(
        update={
            "settings": {"lr": 0.01, "ranks": [8, 4], "skipped_images": {"test": [3, 5]}},
            "versions": {"numpy": "2.1.0"},
            "splits_sha256": "ef" * 32,
            "seconds": 99.0,
            "test_accuracy": 0.5,
        }
    )
    backbone = draft.backbone.model_copy(update={"fingerprint": "12" * 32})
    changed = make_draft(training=training, backbone=backbone)
    found = {d.what: d.values for d in differences(stored(tmp_path, draft, changed))}
    assert found == {
        "splits": ("cdcdcdcdcdcd..", "efefefefefef.."),
        "backbone weights": ("random:0 abababababab..", "random:0 121212121212.."),
        "lr": ("0.001", "0.01"),
        "skipped_images.test": ("", "2"),
        "version of numpy": ("2.0.0", "2.1.0"),
    }


def test_long_lists_of_classes_that_differ_never_look_alike(tmp_path: Path) -> None:
    names = [f"class {i:03}" for i in range(100)]
    one, other = (make_draft(labels=tuple(each)) for each in (names, [*names[:-1], "other"]))
    (found,) = differences(stored(tmp_path, one, other))
    assert found.what == "classes"
    assert found.values[0] != found.values[1]
    assert all(text.startswith("100: class 000, class 001") for text in found.values)
    assert LAYERS.keys() == one.layers.keys()
