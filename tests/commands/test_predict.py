"""``glora predict`` on a task that was really trained and exported."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from glora_deploy.commands.main import app
from glora_deploy.export.pipeline import copy_out, export
from glora_deploy.serving import Predictor
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from tasks import make_task
from trained_task import ONNX, train_and_export

LABELS = {"red", "green", "blue"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Artifact]:
    return train_and_export(tmp_path_factory.mktemp("trained") / "artifacts")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """One image of each class, called after it."""
    task = make_task()
    paths = []
    for index in range(3):
        path = tmp_path / f"{task.classes[task.test.labels[index]]}.png"
        task.test.image(index).save(path)
        paths.append(path)
    return paths


def run(*arguments: Any, stdin: bytes | None = None) -> Result:
    words = ["predict", *(str(argument) for argument in arguments)]
    return CliRunner().invoke(app, words, input=stdin)


def test_each_image_is_answered_with_its_most_probable_labels(
    trained: tuple[ArtifactStore, Artifact], photos: list[Path]
) -> None:
    store, artifact = trained
    result = run("--task", "colours", *photos, "--store", store.root, "--json", "--top-k", 2)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["task"], said["version"], said["precision"]) == ("colours", "v1", "fp32")
    assert said["delta_sha256"] == artifact.manifest.adapter.sha256
    assert [each["image"] for each in said["predictions"]] == [str(path) for path in photos]
    expected = Predictor.from_store(store.root, "colours").predict_batch(photos, top_k=2)
    for found, answer in zip(said["predictions"], expected, strict=True):
        assert [each["label"] for each in found["top"]] == [each.label for each in answer.top]
        assert found["top"][0]["probability"] == pytest.approx(answer.probability, abs=1e-5)
    assert [each["top"][0]["label"] for each in said["predictions"]] == [p.stem for p in photos]


def test_for_people_it_is_a_table(
    trained: tuple[ArtifactStore, Artifact], photos: list[Path]
) -> None:
    result = run("--task", "colours", photos[0], "--store", trained[0].root)
    assert result.exit_code == 0, result.output
    assert "colours/v1 fp32" in result.stdout
    (row,) = (line for line in result.stdout.splitlines() if "red.png" in line)
    assert row.split()[1] == "red"
    assert row.split()[2].endswith("%")
    assert all(label in result.stdout for label in LABELS)
    assert result.stderr == ""


def test_one_bad_image_is_named_and_the_others_are_answered(
    trained: tuple[ArtifactStore, Artifact], photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(photos[0].read_bytes()[:60])
    names = [photos[0], tmp_path / "torn.png", tmp_path / "none.png", photos[1]]
    result = run("--task", "colours", *names, "--store", trained[0].root, "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert [Path(each["image"]).name for each in said["predictions"]] == ["red.png", "green.png"]
    assert [Path(each["image"]).name for each in said["errors"]] == ["torn.png", "none.png"]
    lines = result.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, True]
    assert "torn.png" in lines[0]
    assert "none.png: cannot be read: No such file" in lines[1]


def test_one_image_may_come_from_stdin(
    trained: tuple[ArtifactStore, Artifact], photos: list[Path]
) -> None:
    where = ("--task", "colours", "--store", trained[0].root, "--json")
    result = run(*where, "-", stdin=photos[2].read_bytes())
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["predictions"][0]["top"][0]["label"] == photos[2].stem
    empty = run(*where, "-", stdin=b"")
    assert empty.exit_code == 1
    assert empty.stderr.startswith("error: stdin: ")


def test_the_folder_of_an_export_answers_without_a_store(
    trained: tuple[ArtifactStore, Artifact], photos: list[Path], tmp_path: Path
) -> None:
    store, artifact = trained
    copy_out(export(store, artifact, ONNX), tmp_path / "out", ("onnx",))
    result = run("--folder", tmp_path / "out", photos[1], "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["predictions"][0]["top"][0]["label"] == photos[1].stem


def test_more_images_than_fit_a_batch_are_all_answered(
    trained: tuple[ArtifactStore, Artifact], photos: list[Path], tmp_path: Path
) -> None:
    names = []
    for index in range(40):
        path = tmp_path / f"{index}.png"
        path.write_bytes(photos[index % 3].read_bytes())
        names.append(path)
    result = run("--task", "colours", *names, "--store", trained[0].root, "--json")
    assert result.exit_code == 0, result.output
    found = [each["top"][0]["label"] for each in json.loads(result.stdout)["predictions"]]
    assert found == [photos[index % 3].stem for index in range(40)]
    assert "predicting: 40/40" in result.stderr


def test_no_torch_is_imported(trained: tuple[ArtifactStore, Artifact], photos: list[Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "from glora_deploy.commands.main import app; app(sys.argv[1:])"
    )
    words = ["predict", "--task", "colours", photos[0], "--store", trained[0].root]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout


def test_a_task_that_was_not_exported_comes_with_the_command(tmp_path: Path) -> None:
    from command_stores import make_whole_store

    make_whole_store(tmp_path, "pets")
    image = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(image, "PNG")
    result = run("--task", "pets", "-", "--store", tmp_path, stdin=image.getvalue())
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "--fmt onnx" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png"],
        ["--task", "pets"],
        ["--task", "pets", "--folder", "out", "a.png"],
        ["--folder", "out", "--version", "v1", "a.png"],
        ["--task", "pets", "a.png", "--top-k", "0"],
        ["--task", "pets", "a.png", "--precision", "fp8"],
        ["--task", "../pets", "a.png"],
        ["--task", "pets", "-", "-"],
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
