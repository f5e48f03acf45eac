"""run.toml: beside every version, and enough to train the same again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from glora_deploy.store.companions import RUN_SETTINGS
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.cli import app
from tasks import make_task, use_small_backbone

SMALL = ("--task", "colours", "--data", "digits", "--epochs", "2", "--seed", "3")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"digits": make_task(), "photos": make_task(n_train=30)}
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: tasks[spec])
    use_small_backbone(monkeypatch)


def run(store: Path, *arguments: str | Path) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, [*words, "--store", str(store)])


def settings(store: Path, version: str) -> dict[str, Any]:
    return tomllib.loads((store / "colours" / version / RUN_SETTINGS).read_text("utf-8"))


def assert_same_delta(root: Path, one: str, other: str) -> None:
    store = ArtifactStore.open(root)
    first, second = (store.get("colours", version).tensors() for version in (one, other))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--population", "2", "--generations", "1", "--ranks", "3,2", "--max-parameters", "5k"),
        ("--method", "lora", "--layers", "conv", "--input-size", "32x40", "--lr", "0.003"),
        ("--population", "2", "--generations", "0", "--layers", "affine", "--exclude", "blocks.1"),
        ("--population", "2", "--generations", "0", "--retrain", "--batch-size", "7"),
    ],
)
def test_the_settings_beside_a_version_train_the_same_delta_as_a_new_one(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert run(tmp_path, *SMALL, *arguments).exit_code == 0
    again = run(tmp_path, "--config", tmp_path / "colours/v1" / RUN_SETTINGS)
    assert again.exit_code == 0, again.output
    assert_same_delta(tmp_path, "v1", "v2")
    assert settings(tmp_path, "v2") == settings(tmp_path, "v1")
    assert ArtifactStore.open(tmp_path).verify("colours") == []


def test_lora_of_a_comparison_is_repeated_by_itself(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "--compare-lora", "--population", "2", "--generations", "0")
    assert done.exit_code == 0, done.output
    assert settings(tmp_path, "v1")["compare-lora"] is True
    lora = settings(tmp_path, "v2")
    assert (lora["method"], lora["ranks"]) == ("lora", [8])
    assert not {"compare-lora", "population", "generations"} & lora.keys()
    assert run(tmp_path, "--config", tmp_path / "colours/v2" / RUN_SETTINGS).exit_code == 0
    assert settings(tmp_path, "v3") == lora
    assert_same_delta(tmp_path, "v2", "v3")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, "--method", "lora").exit_code == 0
    config = tmp_path / "colours/v1" / RUN_SETTINGS
    assert run(tmp_path, "--config", config, "--data", "photos", "--lr", "0.5").exit_code == 0
    before, after = settings(tmp_path, "v1"), settings(tmp_path, "v2")
    assert {key for key in before if before[key] != after[key]} == {"data", "lr"}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_says_options_in_the_types_of_toml(tmp_path: Path) -> None:
    config = write(
        tmp_path / "mine.toml",
        'task = "colours"\ndata = "digits"\nepochs = 2\nranks = [3, 2]\nlr = 1\nbatch_size = 9\n'
        'layers = ["linear", "conv"]\nexclude = ["blocks.1"]\ninput-size = [32, 40]\n'
        "max-parameters = 5000\n"
        "population = 2\ngenerations = 0\ncurrent = false\n",
    )
    done = run(tmp_path / "store", "--config", config)
    assert done.exit_code == 0, done.output
    assert "glora use colours v1 --store" in done.stdout
    store = ArtifactStore.open(tmp_path / "store")
    assert store.current("colours") is None
    found = settings(tmp_path / "store", "v1")
    assert found["layers"] == ["linear", "conv"]
    assert (found["input-size"], found["batch-size"], found["lr"]) == ("32x40", 9, 1.0)
    assert found["max-parameters"] == 5000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "epoch is no option. There are: allow-duplicates,"),
        ("quiet = true", "quiet is no option"),
        ("config = 'a.toml'", "config is no option"),
        ('epochs = "3"', "epochs must be a whole number, got '3'"),
        ("epochs = 3.0", "epochs must be a whole number, got 3.0"),
        ("epochs = true", "epochs must be a whole number, got True"),
        ("lr = '0.1'", "lr must be a number, got '0.1'"),
        ("lr = nan", "lr must be a number, got nan"),
        ("retrain = 1", "retrain must be true or false, got 1"),
        ("data = 3", "data must be text, got 3"),
        ("ranks = ['8']", "ranks must be a list of numbers, got ['8']"),
        ("layers = [1]", "layers must be a list of texts, got [1]"),
        ("include = '*.qkv'", "include must be a list of texts, got '*.qkv'"),
        ("seed = 3\n[train]\nepochs = 3", "train is no option"),
        ("batch-size = 3\nbatch_size = 4", "batch_size must be given once"),
        ("epochs = ", "must be TOML"),
        ("epochs = 0", "Invalid value for --epochs: epochs must be at least 1, got 0"),
        ("method = 'dora'", "vpt-shallow, got 'dora'"),
        ("method = 'lora'\nretrain = true", "no effect with method lora"),
    ],
)
def test_a_file_that_cannot_be_meant_is_wrong_usage_and_names_the_key(
    tmp_path: Path, text: str, said: str
) -> None:
    config = write(tmp_path / "mine.toml", f"{text}\n")
    done = run(tmp_path / "store", "--task", "digits", "--config", config)
    assert done.exit_code == 2, done.output
    shown = " ".join(line.strip("│ ") for line in done.stderr.splitlines())
    assert said in " ".join(shown.split())
    assert not (tmp_path / "store").exists()


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = run(tmp_path / "store", "--task", "digits", "--config", tmp_path / "none.toml")
    assert done.exit_code == 2, done.output


def test_a_version_that_shall_not_answer_leaves_the_one_that_does(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, "--method", "lora").exit_code == 0
    done = run(tmp_path, *SMALL, "--method", "lora", "--no-current")
    assert done.exit_code == 0, done.output
    store = ArtifactStore.open(tmp_path)
    assert store.versions("colours") == ["v1", "v2"]
    assert store.current("colours") == "v1"
