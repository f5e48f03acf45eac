"""What a training keeps of how it went; the store's half is in tests/store/test_history.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glora_deploy.store.history import History, read_history
from glora_deploy.store.reader import StoreReader
from glora_deploy.training import evaluate, pipeline
from glora_deploy.training.config import RunConfig, Schedule, SearchConfig, TrainConfig
from glora_deploy.training.evaluate import MergedNetwork
from glora_deploy.training.pipeline import Outcome, run
from glora_deploy.training.search import Score
from tasks import make_task, use_small_backbone

EPOCHS, BEFORE_SEARCH = 6, 3


@pytest.fixture(autouse=True)
def small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
    use_small_backbone(monkeypatch)


def make_config(schedule: Schedule = "short", **changes: Any) -> RunConfig:
    lora = changes.get("method") == "lora"
    train = TrainConfig.preset(
        schedule,
        epochs=EPOCHS,
        batch_size=12,
        lr=1e-2,
        ranks=(3,) if lora else (3, 2),
        warmup_epochs=0,
        checkpoint_every=2,
        drop_path=0,
    )
    search = SearchConfig(population=6, generations=2, top_k=2, mutations=3, crossovers=3)
    values = {"task": "colours", "data": "colours", "search": None if lora else search}
    return RunConfig(**{**values, "train": train, **changes})


def train(
    root: Path, report: Callable[..., None] = lambda *progress: None, **changes: Any
) -> list[Outcome]:
    return run(make_config(**changes), root, report)


def history(outcome: Outcome) -> History:
    artifact = outcome.artifact
    found = read_history(StoreReader(artifact.path.parent.parent), artifact)
    assert found is not None
    return found


def without_seconds(found: History) -> Any:
    told = found.model_dump()
    for stage in told["stages"]:
        for epoch in stage["epochs"]:
            assert epoch.pop("seconds") > 0
    if told["search"]:
        assert told["search"].pop("seconds") > 0
    assert told.pop("cost")["unmerged_ms"] > 0
    return told


def test_a_search_keeps_every_epoch_and_every_candidate(tmp_path: Path) -> None:
    (outcome,) = train(tmp_path)
    found = history(outcome)
    (stage,) = found.stages
    assert (stage.stage, stage.supernet_epochs) == ("training", BEFORE_SEARCH)
    assert [each.epoch for each in stage.epochs] == list(range(1, EPOCHS + 1))
    assert stage.epochs[-1].loss < stage.epochs[0].loss
    assert sum(each.seconds for each in stage.epochs) <= outcome.train_s
    settings = outcome.artifact.manifest.training.settings
    searched, last = stage.validations
    assert (searched.after_epoch, searched.accuracy) == (BEFORE_SEARCH, settings["search_accuracy"])
    assert last.after_epoch == EPOCHS
    # The better of the two is stored.
    assert outcome.val_accuracy == max(searched.accuracy, last.accuracy)
    assert outcome.as_searched == (searched.accuracy > last.accuracy)
    search = found.search
    assert search is not None
    assert [len(generation) for generation in search.generations] == [6, 6, 6]
    assert search.chosen.n_parameters == outcome.n_parameters
    assert search.chosen.val_accuracy == search.best_so_far()[-1] == settings["search_accuracy"]
    assert search.seconds == outcome.search_s


def test_giving_hopeless_subnets_up_changes_nothing_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "SCORE_BATCH", 2)
    (quick,) = train(tmp_path / "quick")
    monkeypatch.setattr(
        MergedNetwork,
        "score",
        lambda self, subnet, split, worthwhile, order: Score(self.accuracy(subnet, split)),
    )
    (patient,) = train(tmp_path / "patient")
    tensors, others = (
        load_file(each.artifact.path / "adapter.safetensors") for each in (quick, patient)
    )
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert quick.val_accuracy == patient.val_accuracy
    found, expected = (history(each).search for each in (quick, patient))
    assert found is not None
    assert expected is not None
    assert found.chosen == expected.chosen
    assert found.best_so_far() == expected.best_so_far()
    assert not all(each.whole for generation in found.generations for each in generation)
    assert all(each.whole for generation in expected.generations for each in generation)


def test_a_search_after_all_epochs_measures_once(tmp_path: Path) -> None:
    (outcome,) = train(tmp_path, schedule="paper")
    (stage,) = history(outcome).stages
    assert stage.supernet_epochs == EPOCHS
    assert [(each.after_epoch, each.accuracy) for each in stage.validations] == [
        (EPOCHS, outcome.val_accuracy)
    ]


def test_retraining_is_a_stage_without_validation(tmp_path: Path) -> None:
    (outcome,) = train(tmp_path, retrain=True)
    first, second = history(outcome).stages
    assert (first.stage, second.stage) == ("training", "retraining")
    assert len(second.epochs) == EPOCHS
    assert second.validations == ()


def test_compared_lora_keeps_its_own_epochs_and_no_search(tmp_path: Path) -> None:
    _, outcome = train(tmp_path, compare_lora=True)
    found = history(outcome)
    (stage,) = found.stages
    assert (stage.stage, stage.supernet_epochs, found.search) == ("lora", 0, None)
    assert len(stage.epochs) == outcome.artifact.manifest.training.epochs
    assert [each.accuracy for each in stage.validations] == [outcome.val_accuracy]


@pytest.mark.parametrize(
    ("stage", "at"), [("training", 3), ("search", 7), ("training", 5), ("retraining", 4)]
)
def test_a_run_gone_on_with_has_the_whole_history(tmp_path: Path, stage: str, at: int) -> None:
    (expected,) = train(tmp_path / "whole", retrain=True)

    def interrupt(name: str, done: int, total: int, note: str) -> None:
        if (name, done) == (stage, at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", interrupt, retrain=True)
    (found,) = train(tmp_path / "broken", retrain=True)
    assert without_seconds(history(found)) == without_seconds(history(expected))


def test_epochs_of_a_release_without_histories_are_missing_and_no_more(tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int, note: str) -> None:
        if (name, done) == ("lora", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, interrupt, method="lora")
    path = tmp_path / ".runs" / "colours" / "lora.safetensors"
    with safe_open(path, framework="pt") as file:
        state = file.metadata()["state"]
    before, _, _ = state.partition(', "history"')
    save_file(load_file(path), path, {"state": before + "}"})
    (outcome,) = train(tmp_path, method="lora")
    (stage,) = history(outcome).stages
    assert [each.epoch for each in stage.epochs] == [4, 5, 6]
