"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glora_deploy.errors import MissingDependencyError
from glora_deploy.store.history import History, StageRecord, read_history
from glora_deploy.store.reader import StoreReader
from glora_deploy.training import pipeline
from glora_deploy.training.config import RunConfig, SearchConfig, TrainConfig
from glora_deploy.training.pipeline import Outcome, run
from glora_deploy.training.setting_error import SettingError
from tasks import make_task, use_small_backbone

pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra `report`)")

EPOCHS = 5


@pytest.fixture(autouse=True)
def small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
    use_small_backbone(monkeypatch)


def make_config(events: Path | None, **changes: Any) -> RunConfig:
    train = TrainConfig.preset(
        "short", epochs=EPOCHS, batch_size=12, ranks=(3, 2), warmup_epochs=0, checkpoint_every=2
    )
    search = SearchConfig(population=6, generations=2, top_k=2, mutations=3, crossovers=3)
    values = {"task": "colours", "data": "colours", "train": train, "search": search}
    return RunConfig(**values, **changes, tensorboard=events)


def train(root: Path, events: Path | None, **changes: Any) -> list[Outcome]:
    return run(make_config(events, **changes), root, lambda *progress: None)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each scalar that TensorBoard would draw."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def float32(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As event files hold them."""
    return [(step, float(np.float32(value))) for step, value in pairs]


def expected(stage: StageRecord) -> dict[str, list[tuple[int, float]]]:
    names = ("loss", "accuracy", "learning_rate", "seconds")
    found = {name: [(e.epoch, getattr(e, name)) for e in stage.epochs] for name in names}
    found["val_accuracy"] = [(v.after_epoch, v.accuracy) for v in stage.validations]
    return {name: float32(pairs) for name, pairs in found.items() if pairs}


def history(outcome: Outcome) -> History:
    artifact = outcome.artifact
    found = read_history(StoreReader(artifact.path.parent.parent), artifact)
    assert found is not None
    return found


def only_folder(events: Path) -> Path:
    (place,) = (events / "colours").iterdir()
    return place


def test_event_files_say_what_the_history_says(tmp_path: Path) -> None:
    first, lora = train(tmp_path / "store", tmp_path / "events", compare_lora=True, retrain=True)
    place = only_folder(tmp_path / "events")
    assert {path.name for path in place.iterdir()} == {"training", "retraining", "search", "lora"}
    for stage in (*history(first).stages, *history(lora).stages):
        assert read(place / stage.stage) == expected(stage)
    search = history(first).search
    assert search is not None
    assert read(place / "search") == {
        "best_so_far": float32(list(enumerate(search.best_so_far(), 1))),
    }


@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_run_gone_on_with_shows_every_epoch_once(tmp_path: Path, from_the_start: bool) -> None:
    store, events = tmp_path / "store", tmp_path / "events"

    def interrupt(name: str, done: int, total: int, note: str) -> None:
        if (name, done) == ("training", 5):  # epochs 1 to 4 are kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(events if from_the_start else None), store, interrupt)
    if from_the_start:
        assert [step for step, _ in read(only_folder(events) / "training")["loss"]] == [
            1,
            2,
            3,
            4,
            5,
        ]
    (outcome,) = train(store, events)
    (stage,) = history(outcome).stages
    assert read(only_folder(events) / "training") == expected(stage)
    assert len(read(only_folder(events) / "search")["best_so_far"]) == 3


def test_two_trainings_do_not_mix(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / "store", tmp_path / "events", seed=seed)
    places = list((tmp_path / "events" / "colours").iterdir())
    assert len(places) == 2
    assert all(len(read(place / "training")["loss"]) == EPOCHS for place in places)


def test_without_tensorboard_the_wish_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: pytest.fail("data were read"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'glora-deploy\[report\]'"):
        train(tmp_path / "store", tmp_path / "events")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: pytest.fail("data were read"))
    (tmp_path / "events").write_text("mine")
    with pytest.raises(SettingError, match="tensorboard must be a folder that can be written to"):
        train(tmp_path / "store", tmp_path / "events" / "here")
    assert [path.name for path in tmp_path.iterdir()] == ["events"]
