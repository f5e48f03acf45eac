"""``glora evaluate`` on a task that was really trained."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from colour_files import N_MISLABELLED, N_TEST
from command_stores import run
from glora_deploy.store.store import ArtifactStore

RIGHT = N_TEST - N_MISLABELLED


@pytest.fixture
def colours(colour_images: Path) -> Path:
    """The images that it was trained on; no test changes them."""
    return colour_images


@pytest.fixture
def store(colour_store: ArtifactStore) -> ArtifactStore:
    """``colours/v1`` is exported and current, ``v2`` is neither; no test changes it."""
    return colour_store


def report_of(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_the_accuracy_is_shown_with_what_answered_and_what_was_recorded(
    store: ArtifactStore, colours: Path
) -> None:
    result = run("evaluate", "colours", "--store", store.root)
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == f"colours/v1 on folder:{colours}, test: {N_TEST} images"
    assert lines[1] == "answered by the exported ONNX model, fp32"
    assert lines[2].startswith(f"accuracy {RIGHT / N_TEST:.1%}, 95% interval 60.0% to 92.3%, as re")
    assert lines[4].endswith("images/s")
    (row,) = [line.split() for line in lines if line.startswith("green ") and "%" in line]
    assert [row[0], *row[-2:]] == ["green", "8", "7"]
    assert "Most confused" in lines
    assert "Which class was taken for which" not in lines


def test_a_version_without_an_export_is_answered_by_its_delta(store: ArtifactStore) -> None:
    result = run("evaluate", "colours", "v2", "--store", store.root)
    assert "answered by the delta, merged with torch, fp32" in result.stdout


def test_an_export_that_was_not_proven_does_not_answer(
    store: ArtifactStore, tmp_path: Path
) -> None:
    shutil.copytree(store.root, tmp_path / "artifacts")
    (record,) = tmp_path.glob("artifacts/colours/v1/exports/fp32/export.json")
    text = record.read_text("utf-8")
    assert '"usable": true' in text
    record.write_text(text.replace('"usable": true', '"usable": false'))
    result = run("evaluate", "colours", "--store", tmp_path / "artifacts")
    assert "answered by the delta, merged with torch" in result.stdout
    refused = run("evaluate", "colours", "--of", "onnx", "--store", tmp_path / "artifacts")
    assert refused.exit_code == 1


def test_delta_and_export_and_folder_give_one_report(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    shutil.copytree(store.export_dir(store.get("colours"), "fp32"), tmp_path / "copied")
    place, data = ("--store", store.root, "--json"), f"folder:{colours}"
    reports = [
        report_of(run("evaluate", "colours", *place)),
        report_of(run("evaluate", "colours", *place, "--of", "onnx")),
        report_of(run("evaluate", "colours", *place, "--of", "delta")),
        report_of(run("evaluate", "colours", *place, "--precision", "fp32", "--batch-size", "5")),
        report_of(run("evaluate", "colours", *place, "--folder", tmp_path / "copied")),
        report_of(run("evaluate", "--folder", tmp_path / "copied", "--data", data, "--json")),
    ]
    assert [each["network"] for each in reports] == ["onnx", "onnx", "delta", *["onnx"] * 3]
    for each in reports:
        assert each["n_correct"] == RIGHT
        assert each["confusion"] == reports[0]["confusion"]
        assert each["delta_sha256"] == reports[0]["delta_sha256"]
        assert each["calibration_error"] == pytest.approx(reports[0]["calibration_error"], abs=1e-5)
    recorded = [each["recorded_accuracy"] for each in reports]
    assert recorded == [RIGHT / N_TEST] * 5 + [None]


def test_json_is_all_of_stdout_and_notes_go_to_stderr(store: ArtifactStore) -> None:
    result = run("evaluate", "colours", "--store", store.root, "--json")
    assert result.stdout.count("\n") == 1
    assert "note: folder:" in result.stderr


def test_which_class_was_taken_for_which_is_shown_and_written(
    store: ArtifactStore, tmp_path: Path
) -> None:
    file = tmp_path / "confusion.csv"
    result = run("evaluate", "colours", "--confusion", "--csv", file, "--store", store.root)
    assert "Which class was taken for which" in result.stdout
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["class", "blue", "green", "red"]
    counts = [list(map(int, row[1:])) for row in rows[1:]]
    assert sum(map(sum, counts)) == N_TEST
    assert sum(counts[i][i] for i in range(3)) == RIGHT
    report = report_of(run("evaluate", "colours", "--json", "--store", store.root))
    assert counts == report["confusion"]


def test_quiet_says_nothing_of_what_went_well(store: ArtifactStore) -> None:
    assert run("evaluate", "colours", "--quiet", "--store", store.root).stdout == ""


def test_another_split_is_named(store: ArtifactStore) -> None:
    result = run("evaluate", "colours", "--split", "all", "--store", store.root)
    assert ", all images: 75 images" in result.stdout
    assert "recorded" not in result.stdout


def test_of_many_classes_the_worst_are_shown_unless_all_are_asked_for(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glora_deploy.commands import evaluate

    monkeypatch.setattr(evaluate, "MAX_CLASSES", 2)
    monkeypatch.setattr(evaluate, "N_WORST", 1)
    result = run("evaluate", "colours", "--store", store.root)
    assert "The 1 classes of lowest recall; all: --per-class" in result.stdout
    classes = result.stdout.partition("lowest recall")[2].partition("Most confused")[0]
    assert "green" in classes  # 6 of 8
    assert "blue" not in classes
    result = run("evaluate", "colours", "--per-class", "--store", store.root)
    classes = result.stdout.partition("Each class")[2].partition("Most confused")[0]
    assert all(name in classes for name in ("red", "green", "blue"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name a task, or give --folder"),
        ("colours --split dev", "--split"),
        ("colours --of tensorrt", "--of"),
        ("colours --batch-size 0", "--batch-size"),
        ("colours --data dgits", "must be one of digits, photos"),
        ("colours --of delta --precision fp16", "no effect on a delta"),
        ("colours --of onnx --device cpu", "no effect on an ONNX model"),
        ("--folder somewhere", "Give --data, or the TASK whose"),
        ("colours --folder somewhere --precision fp16", "no effect on a folder"),
        ("colours --folder somewhere --of delta", "no effect on a folder"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_opened(
    line: str, message: str, tmp_path: Path
) -> None:
    result = run("evaluate", *line.split(), "--store", tmp_path / "missing")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", "").split())


def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    store: ArtifactStore, tmp_path: Path
) -> None:
    for place in (tmp_path / "none" / "x.csv", tmp_path):
        result = run("evaluate", "colours", "--csv", place, "--store", store.root)
        assert result.exit_code == 2, result.output
        assert "images/s" not in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_not_replaced_by_the_onnx_model(store: ArtifactStore) -> None:
    result = run("evaluate", "colours", "--device", "cuda", "--store", store.root)
    assert result.exit_code == 1
    assert "device cuda must be available" in result.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("birds", "error: no task 'birds' in"),
        ("colours v9", "error: no version 'v9' of task 'colours'"),
        ("colours --data folder:nowhere", "PATH must be a folder"),
        ("colours --precision fp16", "--fmt onnx --precision fp16"),
        ("colours v2 --precision fp32", "--version v2"),
        ("colours --folder nowhere", "must be a folder that an export wrote"),
        ("colours --data digits", "10 classes that it does not: 0 (79 images), 1 (81 images)"),
    ],
)
def test_what_is_not_there_is_one_line_and_status_1(
    line: str, message: str, store: ArtifactStore
) -> None:
    result = run("evaluate", *line.split(), "--store", store.root)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert [text for text in result.stderr.splitlines() if text.startswith("error: ")]


def test_where_a_folder_does_not_say_its_splits_the_way_out_is_one_of_this_command(
    store: ArtifactStore, colours: Path, tmp_path: Path
) -> None:
    shutil.copytree(colours / "test", tmp_path / "bare" / "test")
    result = run("evaluate", "colours", "--data", f"folder:{tmp_path}/bare", "--store", store.root)
    assert result.exit_code == 1
    assert "part of the data: --data 'folder:" in result.stderr
    everything = ("--data", f"folder:{tmp_path}/bare/test", "--split", "all")
    report = report_of(run("evaluate", "colours", *everything, "--json", "--store", store.root))
    assert report["n_images"] == N_TEST
    assert report["n_correct"] == RIGHT
