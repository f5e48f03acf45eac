"""Every option of the command line, with each method: it acts, or it is wrong usage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
import typer.main
from typer.testing import CliRunner, Result

from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.cli import app
from tasks import make_task, use_small_backbone

Effect: TypeAlias = Literal["acts", "refused"]

METHODS = ("glora", "lora")
SMALL: dict[str, tuple[str, ...]] = {
    "glora": ("--population", "2", "--generations", "1"),
    "lora": (),
}
EACH: dict[tuple[str, ...], tuple[Effect, Effect]] = {
    # an option with a value: what it does with glora, and with lora
    ("--task", "colours"): ("acts", "acts"),
    ("--data", "photos"): ("acts", "acts"),
    ("--backbone", "another"): ("acts", "acts"),
    ("--checkpoint", "random:7"): ("acts", "acts"),
    ("--input-size", "40"): ("acts", "acts"),
    ("--input-size", "32x40"): ("acts", "acts"),
    ("--version", "first"): ("acts", "acts"),
    ("--schedule", "paper"): ("acts", "acts"),
    ("--epochs", "3"): ("acts", "acts"),
    ("--batch-size", "7"): ("acts", "acts"),
    ("--batch-size", "37"): ("refused", "refused"),
    ("--lr", "0.002"): ("acts", "acts"),
    ("--drop-path", "0.5"): ("acts", "acts"),
    ("--ranks", "2"): ("acts", "acts"),
    ("--ranks", "5,2"): ("acts", "refused"),
    ("--scale", "2.0"): ("refused", "refused"),  # tests/training/methods
    ("--layers", "conv"): ("acts", "acts"),
    ("--layers", "linear,conv"): ("acts", "acts"),
    ("--layers", "conv,affine"): ("acts", "refused"),
    ("--layers", "affine"): ("acts", "refused"),
    ("--include", "blocks.*.attn.*"): ("acts", "acts"),
    ("--include", "blocks.*.atn.*"): ("refused", "refused"),
    ("--include", "*.qkv", "--include", "nothing"): ("refused", "refused"),
    ("--exclude", "blocks.0"): ("acts", "acts"),
    ("--exclude", "*.mlp"): ("acts", "refused"),
    ("--exclude", "nothing"): ("refused", "refused"),
    ("--max-parameters", "200"): ("acts", "refused"),
    ("--servable-mixed",): ("acts", "refused"),
    ("--population", "3"): ("acts", "refused"),
    ("--generations", "2"): ("acts", "refused"),
    ("--retrain",): ("acts", "refused"),
    ("--compare-lora",): ("acts", "refused"),
    ("--seed", "5"): ("acts", "acts"),
}
ELSEWHERE = {
    "--method": "below",
    "--quiet": "below",
    "--log-level": "tests/test_program.py",
    "--config": "test_run_settings",
    "--current": "test_run_settings",
    "--store": "in every test here",
    "--tensorboard": "test_event_files",
    "--device": "test_cli: it changes where numbers are computed, and as little of them as can be",
    "--split": "test_data_of_a_run, as the next three",
    "--skip-unreadable": "",
    "--allow-duplicates": "",
    "--allow-empty-classes": "",
    "--resume": "test_run_folder",
    "--restart": "test_run_folder",
}
"""Where the options are tested that have no value to try here."""


def make_small(patch: pytest.MonkeyPatch) -> None:
    """A task of colours for every name, on tiny backbones."""
    tasks = {"digits": make_task(), "photos": make_task(n_train=30)}
    patch.setattr(pipeline, "load_task", lambda spec, seed: tasks[spec])
    use_small_backbone(patch)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def run(store: Path, method: str, *arguments: str) -> Result:
    base = ("--task", "digits", "--data", "digits", "--epochs", "2", "--store", str(store))
    return CliRunner().invoke(app, [*base, "--method", method, *SMALL[method], *arguments])


def outcomes(store: Path) -> list[Any]:
    """All that a training left in a store, save times and what it says that it was asked for."""
    opened = ArtifactStore.open(store)
    found = []
    for task in opened.tasks():
        for version in opened.versions(task):
            artifact = opened.get(task, version)
            manifest = artifact.manifest
            # The file's own digest follows from the times, too.
            fields = manifest.model_dump(exclude={"created", "training", "adapter"})
            tensors = fingerprint(artifact.tensors())
            found.append((fields, tensors, manifest.training.settings.get("n_evaluated")))
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What comes out without any further option."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        for method in METHODS:
            store = tmp_path_factory.mktemp(method)
            assert run(store, method).exit_code == 0
            found[method] = outcomes(store)
    return found


def test_every_option_is_tried_here_or_elsewhere() -> None:
    options = {parameter.opts[0] for parameter in typer.main.get_command(app).params}
    assert options - {option for option, *_ in EACH} - ELSEWHERE.keys() == set()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arguments", EACH, ids=" ".join)
def test_an_option_changes_what_comes_out_or_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], method: str, bases: dict[str, list[Any]]
) -> None:
    result = run(tmp_path, method, *arguments)
    if EACH[arguments][METHODS.index(method)] == "refused":
        assert result.exit_code == 2, result.output
        assert f"Invalid value for {arguments[0]}" in " ".join(result.stderr.split())
        assert list(tmp_path.iterdir()) == []
    else:
        assert result.exit_code == 0, result.output
        assert outcomes(tmp_path) != bases[method]


def test_the_same_command_gives_the_same_outcome_and_another_method_another(
    tmp_path: Path, bases: dict[str, list[Any]]
) -> None:
    for method in METHODS:
        assert run(tmp_path / method, method).exit_code == 0
        assert outcomes(tmp_path / method) == bases[method]
    assert bases["glora"] != bases["lora"]


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    loud, quiet = run(tmp_path, "lora"), run(tmp_path, "lora", "--quiet")
    assert "read train" in loud.stderr
    assert "digits/v1" in loud.stdout
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert ArtifactStore.open(tmp_path).get("digits").version == "v2"
