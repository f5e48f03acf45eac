from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from glora_deploy.data.load import TaskData
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import cli, pipeline, train
from glora_deploy.training.config import RunConfig
from glora_deploy.training.setting_error import SettingError
from tasks import make_task, use_small_backbone

FOLDER = f"folder:{Path(__file__).parent}"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, Path]]:
    """What ``run`` was asked for; nothing is trained."""
    asked: list[tuple[RunConfig, Path]] = []

    def run(config: RunConfig, root: Path, *callbacks: Any) -> list[Any]:
        asked.append((config, root))
        return []

    monkeypatch.setattr(pipeline, "run", run)
    return asked


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("--task digits", {"task": "digits"}),
        ("--task digits --lr 0.1 --epochs 3", {"task": "digits", "lr": 0.1, "epochs": 3}),
        ("--task digits --schedule paper", {"task": "digits", "schedule": "paper"}),
        (
            "--task a --data digits --batch-size 7 --drop-path 0.2 --ranks 5,3 --layers linear"
            " --include a.* --include b.* --exclude c.* --max-parameters 50k --population 9"
            " --servable-mixed --generations 2 --retrain --compare-lora --seed 4 --device cpu"
            " --restart --version one --store elsewhere --skip-unreadable --allow-duplicates"
            " --allow-empty-classes --tensorboard events",
            {
                "task": "a",
                "data": "digits",
                "batch_size": 7,
                "drop_path": 0.2,
                "ranks": [5, 3],
                "layers": ["linear"],
                "include": ["a.*", "b.*"],
                "exclude": "c.*",
                "max_parameters": 50_000,
                "population": 9,
                "servable_mixed": True,
                "generations": 2,
                "retrain": True,
                "compare_lora": True,
                "seed": 4,
                "device": "cpu",
                "restart": True,
                "version": "one",
                "store": "elsewhere",
                "skip_unreadable": True,
                "allow_duplicates": True,
                "allow_empty_classes": True,
                "tensorboard": "events",
            },
        ),
        (
            f"--task a --data {FOLDER} --backbone vit_base_patch16_224 --checkpoint random:3"
            " --input-size 64x96 --split train=train,val=0.2,test=val --method lora --resume",
            {
                "task": "a",
                "data": FOLDER,
                "backbone": "vit_base_patch16_224",
                "checkpoint": "random:3",
                "input_size": (64, 96),
                "split": "train=train,val=0.2,test=val",
                "method": "lora",
                "resume": True,
            },
        ),
    ],
)
def test_the_same_is_asked_for_as_on_the_command_line(
    runs: list[tuple[RunConfig, Path]], line: str, settings: dict[str, Any]
) -> None:
    done = CliRunner().invoke(cli.app, line.split())
    assert done.exit_code == 0, done.output
    train(**settings)
    by_line, by_call = runs
    assert by_call == by_line


def test_a_size_may_be_one_number_or_text(runs: list[tuple[RunConfig, Path]]) -> None:
    for size in (64, "64", (64, 64), "64x64"):
        train("digits", input_size=size)
    assert {config.input_size for config, _ in runs} == {(64, 64)}


def test_keywords_and_defaults_are_those_of_the_command_line() -> None:
    options = {option.name: option for option in typer.main.get_command(cli.app).params}
    keywords = inspect.signature(train).parameters
    only_here, only_there = {"report", "tell"}, {"quiet", "help", "log_level", "config"}
    assert keywords.keys() - only_here == options.keys() - only_there
    for name in keywords.keys() - only_here - {"task"}:
        default = options[name].default
        # typer says None for an option that may be repeated and is not there
        assert keywords[name].default == (str(default) if name == "store" else default), name


@pytest.mark.parametrize(
    ("settings", "to_blame", "message"),
    [
        ({"task": "birds"}, ["data"], "data must be one of digits, .* got 'birds'"),
        ({"task": "a", "data": FOLDER}, ["backbone"], "backbone must be named for images of your"),
        ({"task": "digits", "epochs": 0}, ["epochs"], "epochs must be at least 1, got 0"),
        ({"task": "digits", "lr": -1}, ["lr"], "lr must be finite and above 0, got -1"),
        (
            {"task": "digits", "method": "lora", "population": 3, "retrain": True},
            ["population", "retrain"],
            "population and retrain: no effect with method lora",
        ),
        (
            {"task": "digits", "method": "dora"},
            ["method"],
            "method must be one of .*bitfit, .*ssf, .*got 'dora'",
        ),
        (
            {"task": "digits", "method": "ssf", "ranks": [4]},
            ["ranks"],
            "ranks: no effect with method ssf, which has none",
        ),
        (
            {"task": "digits", "method": "lora", "scale": 2.0},
            ["scale"],
            "scale: no effect with method lora, which has none",
        ),
        (
            {"task": "digits", "method": "fact-tt", "scale": 0.0},
            ["scale"],
            "scale must be finite and not 0",
        ),
        (
            {"task": "digits", "method": "fact-tt", "layers": "linear,conv"},
            ["kinds"],
            "kinds must be of linear for --method fact-tt, got linear, conv",
        ),
        (
            {"task": "digits", "method": "repadapter", "ranks": [8, 4]},
            ["ranks"],
            "ranks must be one for --method repadapter, got 8, 4",
        ),
        (
            {"task": "digits", "method": "bitfit", "max_parameters": 5},
            ["max_parameters"],
            "max_parameters: no effect with method bitfit, which searches nothing",
        ),
        (
            {"task": "digits", "method": "linear", "include": ["*"]},
            ["include"],
            "include: no effect with method linear, which adapts no layer",
        ),
        (
            {"task": "digits", "method": "ssf", "compare_lora": True},
            ["compare_lora"],
            "compare_lora must go with --method glora, noah, got ssf",
        ),
        (
            {"task": "digits", "layers": "affine", "ranks": [3]},
            ["ranks"],
            "ranks: no effect on affine layers",
        ),
        ({"task": "digits", "layers": "dense"}, ["kinds"], "kinds must be one or more of"),
        ({"task": "digits", "input_size": "big"}, ["input_size"], "such as 224x320, got 'big'"),
        ({"task": "a", "data": "digits", "split": "x"}, ["split"], "split: must give train"),
        ({"task": "../a", "data": "digits"}, ["task"], "task must be 1 to 64 of"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(
    runs: list[tuple[RunConfig, Path]], settings: dict[str, Any], to_blame: list[str], message: str
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        train(**settings)
    assert list(caught.value.settings) == to_blame
    assert runs == []


def test_a_training_tells_its_progress_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def task(spec: str, seed: int) -> TaskData:
        return make_task()

    monkeypatch.setattr(pipeline, "load_task", task)
    use_small_backbone(monkeypatch)
    stages: list[str] = []
    (outcome,) = train(
        "colours",
        data="digits",
        method="lora",
        epochs=2,
        store=tmp_path / "store",
        report=lambda stage, done, total, note: stages.append(stage),
    )
    assert ArtifactStore.open(tmp_path / "store").get("colours").version == "v1"
    assert (outcome.artifact.version, outcome.method) == ("v1", "lora")
    assert {"lora", "test"} <= set(stages)
    assert capfd.readouterr() == ("", "")
