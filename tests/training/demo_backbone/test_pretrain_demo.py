from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from glora_deploy.backbones.packaged import packaged_config
from glora_deploy.training.demo_backbone import pretrain_demo
from glora_deploy.training.demo_backbone.pretrain_images import (
    GROUNDS,
    LETTER_STROKES,
    NUMBERS,
    OUTLINES,
    SUBJECTS,
    TURNING,
    draw_images,
)
from glora_deploy.training.demo_backbone.ridge_probe import ridge_accuracy


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_demo, "BATCH_SIZE", 16)
    monkeypatch.setattr(pretrain_demo, "N_HELD_OUT", 16)
    monkeypatch.setattr(pretrain_demo, "BUILT_IN_TASKS", ("photos",))


def run(out: Path, *arguments: str) -> Any:
    return CliRunner().invoke(
        pretrain_demo.app, ["--out", str(out), "--images", "128", "--epochs", "2", *arguments]
    )


@pytest.mark.usefixtures("small")
def test_the_script_writes_the_backbone_without_its_head(tmp_path: Path) -> None:
    assert run(tmp_path).exit_code == 0
    packaged = packaged_config("demo-vit")
    record = json.loads((tmp_path / "demo-vit.json").read_text())
    for key in ("architecture", "model_args", "pretrained_cfg", "license"):
        assert record[key] == packaged[key]
    assert record["made_by"]["images"] == 128
    assert record["ridge_probe_test_accuracy"]["untrained"]["photos"] > 1 / 8
    weights = load_file(tmp_path / "demo-vit.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    model = pretrain_demo.build_model(0)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["head.weight", "head.bias"], [])


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_demo, "BUILT_IN_TASKS", ())
    assert run(tmp_path / "whole").exit_code == 0
    whole_loss, calls = pretrain_demo.answer_loss, 0

    def interrupted_loss(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return whole_loss(*arguments)

    monkeypatch.setattr(pretrain_demo, "answer_loss", interrupted_loss)
    stopped = run(tmp_path / "parts")
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert not (tmp_path / "parts" / "demo-vit.safetensors").exists()
    calls = 100
    assert run(tmp_path / "parts").exit_code == 0
    assert calls == 100 + 8
    one, two = (load_file(tmp_path / part / "demo-vit.safetensors") for part in ("whole", "parts"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_numbers_without_an_answer_leave_the_loss_alone() -> None:
    images = next(draw_images(16, np.random.default_rng(0)))
    batch = next(pretrain_demo._batches(images, None))
    outputs = torch.zeros(16, len(SUBJECTS) + len(GROUNDS) + len(NUMBERS), requires_grad=True)
    loss = pretrain_demo.answer_loss(outputs, batch)
    (gradient,) = torch.autograd.grad(loss, outputs)
    unknown = torch.isnan(batch.numbers)
    assert unknown.any()
    assert (gradient[:, -len(NUMBERS) :][unknown] == 0).all()
    assert torch.isfinite(loss)


def test_drawn_images_repeat_with_the_seed_only() -> None:
    one, two, other = (next(draw_images(20, np.random.default_rng(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    np.testing.assert_array_equal(one.numbers, two.numbers)
    assert (one.pixels != other.pixels).any()


def test_every_answer_is_given_where_it_means_something() -> None:
    images = next(draw_images(1000, np.random.default_rng(0)))
    assert images.pixels.shape == (1000, 32, 32, 3)
    assert set(images.grounds.tolist()) == set(range(len(GROUNDS)))
    assert len(set(images.subjects.tolist())) > 0.95 * len(SUBJECTS)
    known = ~np.isnan(images.numbers)
    subject = np.array(SUBJECTS)[images.subjects]
    ground = np.array(GROUNDS)[images.grounds]
    place, turn, ground_colour, waves = 0, NUMBERS.index("subject cos"), 8, -1
    np.testing.assert_array_equal(known[:, place], subject != "nothing")
    np.testing.assert_array_equal(known[:, turn], np.isin(subject, list(TURNING)))
    np.testing.assert_array_equal(known[:, waves], np.isin(ground, ["stripes", "checks", "dots"]))
    assert known[:, ground_colour].all()
    assert np.nanmax(np.abs(images.numbers)) <= 1.0001


def test_letters_are_all_there_and_no_subject_is_a_digit() -> None:
    assert "".join(LETTER_STROKES) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert not any(name.isdigit() for name in SUBJECTS)
    assert set(OUTLINES) >= TURNING


def test_a_ridge_probe_separates_what_a_plane_can() -> None:
    rng = np.random.default_rng(0)
    labels = tuple(rng.integers(0, 3, n) for n in (60, 30, 30))
    centres = rng.normal(size=(3, 5)) * 10
    features = tuple(
        (centres[part] + rng.normal(size=(len(part), 5))).astype(np.float32) for part in labels
    )
    assert ridge_accuracy(features, labels) == 1.0
    shuffled = (*labels[:2], (labels[2] + 1) % 3)
    assert ridge_accuracy(features, shuffled) == 0.0
