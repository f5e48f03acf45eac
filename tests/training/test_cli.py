from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glora_deploy.store import ArtifactStore
from glora_deploy.training import cli
from glora_deploy.training.cli import main, parse_count


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
    (("--task", "nonesuch"), "data: a task must be one of"),
    (("--task", "../evil", "--data", "digits"), "task must be 1 to 64 of"),
    (
        ("--task", "digits", "--backbone", "vit_colossal"),
        "backbone 'vit_colossal' must be demo-vit",
    ),
    (("--task", "digits", "--checkpoint", "missing.npz"), "missing.npz"),
    (("--task", "digits", "--epochs", "0"), "epochs must be at least 1, got 0"),
    (("--task", "digits", "--lr", "-1"), "lr must be finite and above 0, got -1.0"),
    (("--task", "digits", "--include", "nothing"), "no linear layer matches"),
    (("--task", "digits", "--version", "a/b"), "version must be 1 to 64 of"),
    (("--task", "digits", "--method", "lora", "--retrain"), "retrain must go with method glora"),
    (("--task", "x", "--data", "folder:nowhere"), "folder:nowhere: PATH must be a folder"),
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
        ("--method", "dora", ("glora", "lora")),
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
    for word in (value, *allowed):
        assert f"'{word}'" in said
    assert option in said


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--ranks", "8;4", "must be numbers such as 8,4, got '8;4'"),
        ("--ranks", "", "must be numbers such as 8,4, got ''"),
        ("--ranks", "4,4", "ranks must be one or more distinct numbers of at least 1, got (4, 4)"),
        ("--layers", "linear,attention", "kinds must be one or more of"),
        ("--max-parameters", "many", "a count must look like 150000, 150k or 0.5M, got 'many'"),
        ("--max-parameters", "", "a count must look like 150000, 150k or 0.5M, got ''"),
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


def test_an_interrupt_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    assert call("--task", "digits", "--quiet", monkeypatch=monkeypatch) == 130
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "the same command with --resume goes on" in captured.err


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
