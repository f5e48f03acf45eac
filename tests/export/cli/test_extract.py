"""``glora extract``: a network that was really tuned whole, through to a proven export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_stores import run
from glora_deploy.backbones.load import load_backbone
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import train

TUNED = ".comparisons/digits/full-0.safetensors"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo-vit after two epochs on digits."""
    root = tmp_path_factory.mktemp("tuned") / "artifacts"
    train("digits", method="full", epochs=2, lr=1e-3, store=root)
    return root / TUNED


@pytest.fixture(scope="module")
def without_tokens(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the tokens and positions of the backbone, which a delta cannot change."""
    state = load_file(tuned)
    own = load_backbone("demo-vit").tensors
    state |= {name: own[name].clone() for name in ("cls_token", "pos_embed")}
    path = tmp_path_factory.mktemp("spared") / "tuned.safetensors"
    save_file(state, path)
    return path


def test_it_is_extracted_compared_exported_and_proven(without_tokens: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    common = ("--task", "digits", "--backbone", "demo-vit", "--store", root)
    done = run("extract", without_tokens, *common, "--data", "digits", "--energy", "1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["task"], told["version"], told["left_out"]) == ("digits", "v1", {})
    on_images = told["agreement"]["test images of digits"]
    assert on_images["same"] == 1.0
    assert on_images["accuracy"] == on_images["extracted_accuracy"] > 0.3
    assert told["agreement"]["random inputs"]["largest"] < 1e-3
    small = run("extract", without_tokens, *common, "--data", "digits", "--budget", "200KB")
    assert small.exit_code == 0, small.output
    artifact = ArtifactStore.open(root).get("digits")
    assert artifact.version == "v2"
    assert artifact.path.joinpath("adapter.safetensors").stat().st_size <= 200_000
    assert artifact.manifest.labels == tuple("0123456789")
    assert artifact.manifest.training.settings["budget_bytes"] == 200_000
    said = " ".join(small.stdout.split())
    assert "25 weights changed; ranks" in said
    assert "798 answered alike" in said
    assert "accuracy" in said
    proven = run("export", "--task", "digits", "--store", root, "--fmt", "onnx", "--images", "8")
    assert proven.exit_code == 0, proven.output
    measured = run("evaluate", "digits", "--data", "digits", "--store", root, "--json")
    accuracy = json.loads(measured.stdout)["accuracy"]
    assert f"the delta's {accuracy:.1%}" in said


def test_verbose_has_a_line_for_each_layer(without_tokens: Path, tmp_path: Path) -> None:
    done = run(
        "extract", without_tokens, "--task", "digits", "--backbone", "demo-vit",
        "--store", tmp_path / "artifacts", "--rank", "3", "--verbose",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("blocks.")]
    assert len(rows) == 24
    assert all(row[1] == "3" for row in rows)
    assert all(int(row[2]) <= int(row[3]) <= int(row[4]) <= int(row[5]) for row in rows)


def test_what_would_be_lost_is_named_and_nothing_is_stored(tuned: Path, tmp_path: Path) -> None:
    command = ("extract", tuned, "--task", "digits", "--backbone", "demo-vit")
    refused = run(*command, "--store", tmp_path / "artifacts")
    assert refused.exit_code == 1
    assert "cls_token" in refused.output
    assert "pos_embed" in refused.output
    assert not (tmp_path / "artifacts").exists()
    done = run(*command, "--store", tmp_path / "artifacts", "--leave-out", "--no-current")
    assert done.exit_code == 0, done.output
    assert "left out: pos_embed, which changed by" in done.stdout
    assert ArtifactStore.open(tmp_path / "artifacts").current("digits") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rank", "3", "--energy", "0.5"), "exactly one of energy, budget and rank"),
        (("--energy", "2"), "energy must be above 0"),
        (("--budget", "much"), "a size must be a number with a unit"),
        (("--split", "val"), "must go with --data"),
        (("--seed", "3"), "must go with --data"),
        (("--backbone", "vit_huge_of_mine"), "vit_huge_of_mine"),
        (("--input-size", "0"), "for --input-size"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = run("extract", tmp_path / "no.pth", "--task", "pets", "--store", tmp_path, *options)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_another_number_of_names_and_a_budget_too_small_store_nothing(
    without_tokens: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    command = ("extract", without_tokens, "--task", "digits", "--backbone", "demo-vit")
    root = tmp_path / "artifacts"
    done = run(*command, "--store", root, "--labels", tmp_path / "names.txt")
    assert done.exit_code == 1
    assert "--labels must have one name for each of the 10 classes" in " ".join(done.output.split())
    done = run(*command, "--store", root, "--budget", "1KB")
    assert done.exit_code == 1
    assert "budget must be at least" in done.output
    assert not root.exists()


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "odd.safetensors")
    done = run(
        "extract", tmp_path / "odd.safetensors", "--task", "pets", "--backbone", "demo-vit",
        "--store", tmp_path / "artifacts",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "must hold the network and its classifier head" in done.output
