from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glora_deploy.backbones.load import outline
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.cli import main
from glora_deploy.training.methods import METHODS
from glora_deploy.training.options import parse_count
from glora_deploy.training.run_folder import RunFolder


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["glora-train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Calls with wrong usage, which leaves nothing behind; what is said of it, out of its frame."""
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: str) -> str:
        assert call(*arguments, monkeypatch=monkeypatch) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert list(tmp_path.iterdir()) == []
        return " ".join(line.strip("│ ") for line in captured.err.splitlines())

    return refused


WRONG = [
    (("--task", "digits", "--checkpoint", "missing.npz"), "missing.npz"),
    (("--task", "digits", "--resume"), "there is no unfinished run to go on with"),
    (
        ("--task", "x", "--data", "folder:nowhere", "--backbone", "vit_tiny_patch16_224"),
        "folder:nowhere: PATH must be a folder",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_input_gives_one_line_and_leaves_no_store(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments, "--quiet", monkeypatch=monkeypatch) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "artifacts"
    place.write_text("mine")
    assert call("--task", "digits", "--store", str(place), "--quiet", monkeypatch=monkeypatch) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "the store must be a folder" in captured.err
    assert place.read_text() == "mine"


def test_wrong_usage_exits_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch=monkeypatch) == 2
    assert call("--task", "digits", "--epochs", "many", monkeypatch=monkeypatch) == 2
    assert call("--task", "digits", "--no-such-option", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--method", "dora", tuple(METHODS)),
        ("--schedule", "fast", ("short", "paper")),
        ("--device", "tpu", ("auto", "cpu", "cuda")),
    ],
)
def test_a_value_that_is_no_choice_is_wrong_usage_and_names_the_choices(
    option: str,
    value: str,
    allowed: tuple[str, ...],
    refusal: Callable[..., str],
) -> None:
    said = refusal("--task", "digits", option, value)
    assert (
        f"Invalid value for '{option}': must be one of {', '.join(allowed)}, got '{value}'" in said
    )


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--ranks", "8;4", "must be numbers such as 8,4, got '8;4'"),
        ("--ranks", "", "must be numbers such as 8,4, got ''"),
        ("--ranks", "4,4", "ranks must be one or more distinct numbers of at least 1, got 4, 4"),
        (
            "--layers",
            "linear,attention",
            "--layers must be one or more of linear, conv, affine, got linear, attention",
        ),
        ("--layers", "", "--layers must be one or more of linear, conv, affine, got ''"),
        ("--ranks", "0", "ranks must be one or more distinct numbers of at least 1, got 0"),
        ("--max-parameters", "many", "a count must look like 150000, 150k or 0.5M, got 'many'"),
        ("--max-parameters", "", "a count must look like 150000, 150k or 0.5M, got ''"),
        ("--data", "nonesuch", "data must be one of digits, photos, position, orientation, or"),
        ("--version", "a/b", "version must be 1 to 64 of"),
        ("--epochs", "0", "epochs must be at least 1, got 0"),
        ("--lr", "-1", "lr must be finite and above 0, got -1.0"),
        ("--drop-path", "1", "--drop-path must be in [0, 1), got 1.0"),
        ("--batch-size", "0", "--batch-size must be at least 1, got 0"),
        ("--batch-size", "801", "--batch-size must be at most 800, the number of training images"),
        ("--population", "0", "population must be at least 1, got 0"),
        ("--generations", "-1", "generations must be at least 0, got -1"),
        ("--seed", "-1", "seed must be in [0, 2**64), got -1"),
        ("--ranks", "100000", "ranks must be at most 99999"),
        ("--layers", "linear,linear", "--layers must name each kind once, got linear, linear"),
        ("--include", "blocks.*.atn.*", "include pattern 'blocks.*.atn.*' must match a linear"),
        ("--exclude", "nothing", "exclude pattern 'nothing' must match a layer that would be"),
        ("--backbone", "vit_colossal", "backbone 'vit_colossal' must be demo-vit or a timm"),
        ("--backbone", "resnet18.nix", "backbone 'resnet18.nix': timm has no weights 'nix' of"),
        ("--backbone", "qwen3_vit_88m_enc", "backbone 'qwen3_vit_88m_enc' must have a classifier"),
        ("--checkpoint", "random:abc", "checkpoint random:SEED must have a whole number from 0"),
        ("--checkpoint", "random:-1", "checkpoint random:SEED must have a whole number from 0"),
        ("--checkpoint", f"random:{10**22}", "checkpoint random:SEED must have a whole number"),
        ("--checkpoint", "a\nb.npz", "the name of a checkpoint file must be UTF-8 text without"),
        ("--input-size", "1", "backbone 'demo-vit' must take the input size, it cannot take 1x1"),
        ("--input-size", "33", "backbone 'demo-vit' must take the input size, it cannot take 33x"),
        ("--input-size", "20000", "each side of the input must have 1 to 4096 pixels, got 20000"),
        ("--input-size", "224x", "an input size must be pixels such as 224, or HEIGHTxWIDTH"),
        ("--input-size", "0x32", "each side of the input must have 1 to 4096 pixels, got 0x32"),
    ],
)
def test_a_malformed_value_is_wrong_usage_and_names_the_option_and_the_rule(
    option: str,
    value: str,
    rule: str,
    refusal: Callable[..., str],
) -> None:
    said = refusal("--task", "digits", option, value)
    assert f"Invalid value for {option}: {rule}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "../evil", "--data", "digits"), "--task: task must be 1 to 64 of A-Z a-z 0-9"),
        (("--task", "pets"), "--data: data must be one of digits, photos, position, orientation"),
        (
            ("--task", "pets", "--data", "folder:images"),
            "--backbone: backbone must be named for images of your own. To start with:",
        ),
        (
            ("--task", "x", "--data", "foo:bar", "--backbone", "demo-vit"),
            "--data: data must be folder:PATH, lists:PATH, vtab:PATH or the name of a built-in",
        ),
        (
            ("--task", "x", "--data", "folder:\udce9", "--backbone", "demo-vit"),
            "--data: data must be UTF-8, as it is kept with the delta",
        ),
        (
            ("--task", "digits", "--method", "lora", "--compare-lora"),
            "--compare-lora: --compare-lora must go with --method glora, noah, got lora",
        ),
        (
            ("--task", "digits", "--resume", "--restart"),
            "--resume / --restart: an unfinished run is either gone on with or discarded",
        ),
        (
            ("--task", "digits", "--layers", "affine", "--ranks", "4"),
            "--ranks: no effect on affine layers",
        ),
        (
            ("--task", "digits", "--layers", "affine", "--compare-lora"),
            "--layers: LoRA needs a linear or conv layer",
        ),
        (
            ("--task", "digits", "--include", "*.qkv", "--exclude", "*.attn"),
            "--include / --exclude: include pattern '*.qkv' must match a layer that is not",
        ),
        (
            ("--task", "digits", "--backbone", "resnet18", "--checkpoint", "random:0"),
            "--layers: no linear layer is left for glora to adapt",
        ),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    arguments: tuple[str, ...], said: str, refusal: Callable[..., str]
) -> None:
    assert f"Invalid value for {said}" in refusal(*arguments)


def test_the_backbones_named_for_a_start_exist() -> None:
    for name in ("vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_224.orig_in21k"):
        assert outline(name).classifier == ("head",)


def test_a_device_that_is_not_there_is_a_failure_and_not_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call("--task", "digits", "--device", "cuda", "--quiet", monkeypatch=monkeypatch) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "torch finds none. Use --device cpu" in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("n_epochs", "message"),
    [
        (0, "interrupted before an epoch was complete; nothing is kept"),
        (1, "interrupted; 1 epoch is kept, and the same command goes on from there"),
        (7, "interrupted; 7 epochs are kept, and the same command goes on from there"),
    ],
)
def test_an_interrupt_tells_what_is_kept_and_how_to_go_on(
    n_epochs: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object) -> None:
        if n_epochs:
            path = RunFolder(tmp_path / "artifacts", "digits").checkpoint("supernet")
            path.path.parent.mkdir(parents=True)
            path.write({}, n_epochs, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    assert call("--task", "digits", "--quiet", monkeypatch=monkeypatch) == 130
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.strip() == message


@pytest.mark.parametrize(
    ("text", "count"),
    [("150000", 150_000), ("150k", 150_000), ("0.5M", 500_000), ("1_000", 1000), ("0", 0)],
)
def test_counts_are_read_in_numbers_thousands_or_millions(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1e6", "5 M", "k", "nan", "1.5.2"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a count must look like"):
        parse_count(text)


def test_the_help_shows_worked_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--help", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "glora-train --task digits --compare-lora --max-parameters 50k" in shown
    assert "vtab:vtab-1k/svhn" in shown


def test_one_epoch_is_enough_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ("--epochs", "1", "--population", "1", "--generations", "0")
    command = ("--task", "digits", *size, "--store", str(tmp_path), "--quiet")
    assert call(*command, monkeypatch=monkeypatch) == 0
    assert ArtifactStore.open(tmp_path).get("digits").manifest.training.epochs == 1


def test_three_epochs_on_real_digits_beat_chance_by_far(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "glora_deploy.training", "--task", "digits", "--epochs", "3"),
        *("--population", "2", "--generations", "0", "--max-parameters", "100k"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "digits/v1" in done.stdout
    artifact = ArtifactStore.open(tmp_path / "artifacts").get("digits")
    assert artifact.manifest.n_parameters <= 100_000
    assert (artifact.manifest.training.test_accuracy or 0) > 0.6  # chance is 0.1
    assert not (tmp_path / "artifacts" / ".runs" / "digits").exists()
