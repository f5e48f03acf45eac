"""The card's parts, and that nothing a manifest holds can break its form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from factories import make_draft, make_store, make_tensors
from glora_deploy.export.hub.model_card import MAX_LABELS, is_ours, model_card
from glora_deploy.parity import DEFAULT_LIMITS, Comparison, Report, Step
from glora_deploy.store.manifest import Manifest, ManifestDraft

COMPARISON = Comparison(
    against="merged-fp64",
    max_abs=1.1e-6,
    max_rel=1,
    error=2.5e-6,
    min_cosine=1,
    agreement=1,
    decided_agreement=1,
)


def make_report(**changes: Any) -> Report:
    step = Step(
        stage="onnx-fp32",
        inputs="32 test images of digits",
        n_images=32,
        outcome="pass",
        limits=DEFAULT_LIMITS["fp32"],
        comparisons=(COMPARISON,),
    )
    skipped = Step(
        stage="trt", inputs="noise", n_images=0, outcome="skipped", reason="no GPU | here"
    )
    fields: dict[str, Any] = {
        "task": "pets",
        "version": "v1",
        "precision": "fp32",
        "adapter_sha256": "0" * 64,
        "data": "digits",
        "steps": (step, skipped),
    }
    return Report(**fields | changes)


def make_card(tmp_path: Path, draft: ManifestDraft | None = None, **changes: Any) -> str:
    draft = draft or make_draft()
    artifact = make_store(tmp_path).put("pets", make_tensors(draft), draft)
    known: dict[str, Any] = {
        "repo": "ann/pets",
        "revision": None,
        "license": "apache-2.0",
        "merged_bytes": 22_900_000,
        "onnx": True,
        "pixels": False,
        "self_contained": False,
    }
    report = changes.pop("report", None) or make_report()
    return model_card(artifact.manifest, report, **known | changes)


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    data: dict[str, Any] = yaml.safe_load(found[1])
    return data


def with_training(**changes: Any) -> ManifestDraft:
    draft = make_draft()
    return draft.model_copy(update={"training": draft.training.model_copy(update=changes)})


def with_source(source: str) -> ManifestDraft:
    draft = make_draft()
    return draft.model_copy(
        update={"backbone": draft.backbone.model_copy(update={"source": source})}
    )


def test_the_front_matter_says_what_the_hub_searches_by(tmp_path: Path) -> None:
    assert front_matter(make_card(tmp_path, with_training(test_accuracy=0.9))) == {
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["glora", "onnx"],
        "metrics": ["accuracy"],
    }


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    found = front_matter(make_card(tmp_path, onnx=False))
    assert found.keys() == {"license", "library_name", "pipeline_tag", "tags"}
    assert found["tags"] == ["glora"]


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("timm:vit_base_patch16_224.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
        ("timm:vit_base_patch16_224", None),
        ("file:weights.npz", None),
        ("packaged:demo-vit", None),
    ],
)
def test_the_base_model_is_named_where_one_repository_holds_it(
    tmp_path: Path, source: str, base: str | None
) -> None:
    found = front_matter(make_card(tmp_path, with_source(source)))
    assert found.get("base_model") == base
    assert found.get("base_model_relation") == ("finetune" if base else None)


def test_the_sections_come_in_this_order(tmp_path: Path) -> None:
    card = make_card(tmp_path)
    text = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == [
        "# pets",
        "## How to load it",
        "## How it was trained",
        "## What is stored",
        "## Proof of equality",
    ]
    assert is_ours(card)
    assert not is_ours("# pets\n")


def test_classes_accuracy_backbone_and_input_are_stated(tmp_path: Path) -> None:
    card = make_card(tmp_path, with_training(test_accuracy=0.98765))
    for line in (
        "- Classes: cat, dog, Führerschein, owl",
        "- Top-1 accuracy: 98.77% on the test images, 75.00% on the validation images",
        "- Backbone: random:0, tensors with sha256 `abababababababab..`",
        "- Input: RGB, 6 x 8, bicubic, crop center 0.875, mean (0.5, 0.25, 0.125), "
        "std (0.5, 0.5, 0.25)",
    ):
        assert f"\n{line}\n" in card


def test_unknown_accuracy_is_said_to_be_so(tmp_path: Path) -> None:
    card = make_card(tmp_path, with_training(val_accuracy=None))
    assert "\n- Top-1 accuracy: not recorded\n" in card


def test_the_training_table_has_what_was_set_and_nothing_unknown(tmp_path: Path) -> None:
    card = make_card(tmp_path, with_training(schedule=None))
    for row in (
        "| method | glora |",
        "| seed | 7 |",
        "| lr | 0.001 |",
        "| versions | numpy 2.0.0 |",
    ):
        assert f"\n{row}\n" in card
    assert "| schedule |" not in card
    assert "None" not in card


def test_supports_are_counted_as_the_manifest_counts_them(tmp_path: Path) -> None:
    card = make_card(tmp_path)
    rows = re.findall(r"^\| ([A-E]) \| (.*) \| ([0-9,]+) \|$", card, re.MULTILINE)
    assert [row[0] for row in rows] == list("ABCDE")
    assert rows[0][1:] == ("lora:3 (1), vector (2)", "70")  # 3 x (15 + 5), 5 and 5
    draft = make_draft()
    manifest: Manifest = make_store(tmp_path / "b").put("pets", make_tensors(draft), draft).manifest
    assert sum(int(row[2].replace(",", "")) for row in rows) == manifest.n_parameters
    assert f"holds {manifest.n_parameters:,} numbers of supports and 24 of the classifier" in card
    assert "take 22.9 MB (fp32)" in card


def test_every_parity_step_is_a_row(tmp_path: Path) -> None:
    card = make_card(tmp_path)
    about, numbers = "32 test images of digits | 32 | pass", "1.1e-06 | 2.5e-06 | 1.0000000 | 100%"
    assert f"\n| onnx-fp32 | {about} | {numbers} |\n" in card
    assert "\n| trt | noise | 0 | skipped: no GPU \\| here |  |  |  |  |\n" in card


def test_operations_kept_in_fp32_are_named(tmp_path: Path) -> None:
    report = make_report(overflow=("blocks.0.mlp Gelu: 7e+04",))
    card = make_card(tmp_path, report=report, onnx=False)
    assert "Kept in fp32 because of their range: blocks.0.mlp Gelu: 7e+04." in card


def test_there_are_four_ways_to_load_it_and_all_name_the_branch(tmp_path: Path) -> None:
    card = make_card(tmp_path, revision="v2")
    blocks = re.findall(r"```(?:python|bash)\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    for block, pin in zip(
        blocks,
        ('"hf-hub:ann/pets@v2"', 'revision="v2"', "--revision v2", 'revision="v2"'),
        strict=True,
    ):
        assert pin in block


def test_without_onnx_there_are_three(tmp_path: Path) -> None:
    card = make_card(tmp_path, onnx=False)
    assert "onnx" not in card.lower().replace("onnx-fp32", "")
    assert len(re.findall(r"```(?:python|bash)\n", card)) == 3


def test_a_model_that_holds_its_weights_is_fetched_alone(tmp_path: Path) -> None:
    beside = make_card(tmp_path / "a")
    assert "`model.onnx` reads its weights from `model.safetensors`" in beside
    inside = make_card(tmp_path / "b", self_contained=True, revision="v2")
    assert "`model.onnx` holds its weights:" in inside
    assert 'model = hf_hub_download("ann/pets", "model.onnx", revision="v2")\n' in inside
    assert "reads its weights" not in inside


def test_a_model_in_bf16_is_not_given_to_onnx_runtime(tmp_path: Path) -> None:
    card = make_card(tmp_path, report=make_report(precision="bf16"))
    assert "`model.onnx` is for TensorRT: it computes in bf16" in card
    assert "import onnxruntime" not in card


def test_python_blocks_compile(tmp_path: Path) -> None:
    card = make_card(tmp_path, revision="v2")
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(block, "card", "exec")
    assert "embed_dim=5, img_size=[6, 8]" in card


def test_marks_in_names_do_not_reach_the_form(tmp_path: Path) -> None:
    labels = ("a|b", "<script>", "*bold*", "`code`")
    card = make_card(tmp_path, make_draft(labels=labels))
    assert r"- Classes: a\|b, \<script\>, \*bold\*, \`code\`" in card


def test_a_long_list_of_classes_is_cut(tmp_path: Path) -> None:
    labels = tuple(f"c{i}" for i in range(MAX_LABELS + 2))
    card = make_card(tmp_path, make_draft(labels=labels))
    assert f"c{MAX_LABELS - 1}, ... (all of them in `config.json`)" in card
    assert f"c{MAX_LABELS}" not in card
