"""What a run refuses, leaves out and records of image files, and that the export reads alike."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from glora_deploy.data.spec import with_splits
from glora_deploy.errors import DataError
from glora_deploy.export.parity_check.inputs import task_data
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.cli import main
from glora_deploy.training.config import RunConfig, TrainConfig
from image_files import write_classes
from stored_tasks import make_backbone


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_backbone", lambda *args, **kwargs: make_backbone())


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of classes, ten images each."""
    write_classes(tmp_path / "pets", {"cat": 10, "dog": 10})
    return tmp_path / "pets"


def run(data: str, root: Path, **changes: Any) -> list[str]:
    """Train one epoch of LoRA; the lines that a person was told."""
    train = TrainConfig.preset("short", epochs=1, ranks=(2,), lr=1e-2, warmup_epochs=0)
    config = RunConfig(
        task="pets",
        data=data,
        method="lora",
        train=train,
        search=None,
        **changes,
    )
    told: list[str] = []
    pipeline.run(config, root, lambda *progress: None, told.append)
    assert "is a toy" in told[0]
    return told[1:]


def break_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:50])


def test_unreadable_images_are_found_before_the_store_is_touched(
    tmp_path: Path, pets: Path
) -> None:
    break_images(pets, *(f"cat/0{i}.png" for i in range(4)))
    with pytest.raises(DataError, match="got 4 of 20 that are not"):
        run(f"folder:{pets}", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    break_images(pets, "dog/03.png")
    ArtifactStore.create(tmp_path / "store")
    before = sorted((tmp_path / "store").rglob("*"))
    with pytest.raises(DataError, match="got 5 of 20 that are not"):
        run(f"folder:{pets}", tmp_path / "store")
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_the_export_leaves_out_what_the_training_left_out(tmp_path: Path, pets: Path) -> None:
    bad = ("cat/03.png", "cat/07.png", "dog/05.png", "dog/06.png")
    break_images(pets, *bad)
    told = run(f"folder:{pets}", tmp_path / "store", skip_unreadable=True)
    assert told[0].startswith(f"folder:{pets}: 2 classes, 12 train images")
    assert told[1].startswith("left out 4 unreadable images: ")
    manifest = ArtifactStore.open(tmp_path / "store").get("pets").manifest
    task, words = task_data(manifest)
    assert words == "its own data (folder)"
    assert task is not None
    assert task.splits_sha256 == manifest.training.splits_sha256
    ids = [image_id for _, images in task.splits() for image_id in images.ids]
    assert len(ids) == 16
    assert not set(bad) & set(ids)


def test_the_export_reads_the_splits_that_were_asked_for(tmp_path: Path, pets: Path) -> None:
    write_classes(tmp_path / "pets" / "held", {"cat": 3, "dog": 3})
    spec = with_splits(f"folder:{pets}", "train=.,val=0.3,test=held")
    run(spec, tmp_path / "store")
    manifest = ArtifactStore.open(tmp_path / "store").get("pets").manifest
    assert manifest.training.data == spec
    task, _ = task_data(manifest)
    assert task is not None
    assert task.splits_sha256 == manifest.training.splits_sha256
    assert (len(task.train), len(task.val), len(task.test)) == (14, 6, 6)


def test_what_was_allowed_is_recorded(tmp_path: Path, pets: Path) -> None:
    for i in range(10):
        shutil.copy(pets / f"cat/0{i}.png", pets / f"cat/copy{i}.png")
    with pytest.raises(DataError, match="the splits must share no picture"):
        run(f"folder:{pets}", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    told = run(f"folder:{pets}", tmp_path / "store", allow_duplicates=True)
    assert told[1].startswith("allowed, although the splits must share no picture")
    settings = ArtifactStore.open(tmp_path / "store").get("pets").manifest.training.settings
    assert settings["allow_duplicates"] is True
    assert settings.keys().isdisjoint(("allow_empty_classes", "skipped_images"))


def glora_train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    quick = [
        "--task",
        "pets",
        "--method",
        "lora",
        "--epochs",
        "1",
        "--backbone",
        "demo-vit",
        "--quiet",
    ]
    monkeypatch.setattr(sys, "argv", ["glora-train", *quick, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_the_command_line_takes_every_choice_and_tells_how_the_data_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = tmp_path / "[red]pets:fish:"
    write_classes(pets / "train", {"cat": 10, "dog": 10, "empty": 0})
    write_classes(pets / "val", {"cat": 5, "dog": 5})
    shutil.copy(pets / "train/cat/00.png", pets / "val/cat/copy.png")
    break_images(pets, "val/dog/02.png")
    command = ("--data", f"folder:{pets}", "--store", tmp_path / "s")
    choices = ("--split", "train=train,val=0.2,test=val", "--skip-unreadable")
    allowed = ("--allow-empty-classes", "--allow-duplicates")
    for given, message in (
        ((), "there must be test images, got none"),
        (choices[:2], "every image must be readable, got 1 of 31"),
        (choices, "every class must have training images, got none for 1 class of 3: empty"),
        ((*choices, allowed[0]), "the splits must share no picture"),
    ):
        assert glora_train(monkeypatch, *command, *given) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "s").exists()
    assert glora_train(monkeypatch, *command, *choices, *allowed) == 0
    said = capsys.readouterr().err
    assert f"folder:{pets}?split=train=train,val=0.2,test=val: 3 classes, 16 train images" in said
    assert said.count("\n") == 5


@pytest.mark.parametrize("data", ["digits", "vtab:/tmp"])
def test_splits_of_data_that_has_its_own_are_wrong_usage(
    tmp_path: Path,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert glora_train(monkeypatch, "--data", data, "--split", "train=a,val=0.2,test=b") == 2
    assert "--split" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
