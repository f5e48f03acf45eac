"""Whatever leaves this machine says nothing of it: not where data lie, not whose machine it is."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from glora_deploy.errors import MissingDependencyError, StoreError
from glora_deploy.export.cli.commands import app as export_app
from glora_deploy.export.parity_check.inputs import data_words, parity_inputs
from glora_deploy.export.pipeline import ExportConfig, copy_out, export
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.redact import data_kind, name_alone, names_place, redacted
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training.cli import app as training_app
from hub_server import HubServer, local_hub
from pushed import REPO, Pushed
from stored_tasks import LABELS, make_stored_task

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SECRET = "kEEpthis"
"""In the name of every folder, user and machine here, and in nothing else."""


def make_images(folder: Path, n_each: int = 6) -> str:
    """A data spec of images below a folder that nobody must hear of."""
    rng = np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for index in range(n_each):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return f"folder:{folder}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, in the home of a user, on a machine, all of whose names are secret."""
    home = tmp_path / f"home-{SECRET}"
    home.mkdir()
    for name in ("HOME", "USER", "LOGNAME", "HOSTNAME", "PWD"):
        monkeypatch.setenv(name, str(home) if name in ("HOME", "PWD") else f"{name}-{SECRET}")
    monkeypatch.setattr(socket, "gethostname", lambda: f"host-{SECRET}")
    monkeypatch.setattr(platform, "node", lambda: f"host-{SECRET}")
    return home


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch, tmp_path) as server:
        yield server


def require_silent(files: dict[str, bytes], *secrets: str) -> None:
    assert files
    for name, data in files.items():
        for secret in (SECRET, *secrets):
            for spelling in (secret.encode(), secret.encode("utf-16-le")):
                assert spelling not in data, f"{name} names {secret}"
            assert secret not in name


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(app: Any, *arguments: str | Path) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_nothing_of_a_trained_task_that_is_given_away_names_a_place(
    place: Path, hub: HubServer, tmp_path: Path
) -> None:
    data = make_images(place / "clients/acme/xrays")
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    save_file(state, place / "weights.safetensors")
    run(
        training_app, "--task", "pets", "--data", data, "--store", place / "store", "--quiet",
        "--backbone", "vit_tiny_patch16_224", "--checkpoint", place / "weights.safetensors",
        "--input-size", 32, "--method", "lora", "--epochs", 1,
    )  # fmt: skip
    task = ("--task", "pets", "--store", place / "store", "--quiet", "--images", 2)
    int8 = ("--quantize", "int8", "--max-loss", 1)
    out, repository = tmp_path / "out", tmp_path / "repository"
    run(
        export_app, *task, "--fmt", "merged", "--fmt", "onnx", "--fmt", "delta", *int8, "--out", out
    )
    run(export_app, *task, "--fmt", "triton", *int8, "--out", repository)
    run(export_app, *task, "--fmt", "onnx", "--single-file", "--out", tmp_path / "single")
    store = ArtifactStore.open(place / "store")
    artifact = store.get("pets")
    assert artifact.manifest.training.data == data  # the store itself does know
    Pushed(hub, store, artifact).push()
    pushed = hub.repos[REPO].files()
    assert {"README.md", "glora/manifest.json", "model.onnx", "parity.json"} <= pushed.keys()
    for files in (pushed, *(files_below(f) for f in (out, repository, tmp_path / "single"))):
        require_silent(files, str(tmp_path))
    assert "| data | folder |" in pushed["README.md"].decode()
    manifest = json.loads(pushed["glora/manifest.json"])
    assert manifest["training"]["data"] == "folder"
    assert manifest["training"]["splits_sha256"] == artifact.manifest.training.splits_sha256
    assert manifest["backbone"]["source"] == "file:weights.safetensors"
    report = Report.from_json(pushed["parity.json"], "parity.json")
    assert report.data == "2 test images of its own data (folder)"


@pytest.fixture
def stored(place: Path, hub: HubServer) -> Pushed:
    """A task on data in a secret place."""
    data = make_images(place / "acme")
    store, artifact = make_stored_task(place / "store", data=data)
    return Pushed(hub, store, artifact)


def export_fp32(task: Pushed) -> None:
    assert export(task.store, task.artifact, ExportConfig(n_images=2)).report.passed


def test_a_pushed_manifest_differs_in_the_place_of_the_data_alone(stored: Pushed) -> None:
    export_fp32(stored)
    stored.push()
    pushed = json.loads(stored.files["glora/manifest.json"])
    ours = json.loads((stored.artifact.path / "manifest.json").read_bytes())
    assert ours["training"].pop("data").endswith("acme")
    assert pushed["training"].pop("data") == "folder"
    assert pushed == ours
    require_silent(stored.files)


def test_what_was_pushed_so_is_pulled_verified_and_exported_on_noise(
    stored: Pushed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_fp32(stored)
    stored.push()
    pulled = stored.pull(tmp_path / "theirs")
    theirs = ArtifactStore.open(tmp_path / "theirs")
    assert theirs.verify() == []
    assert pulled.manifest.training.data == "folder"
    for name, tensor in stored.artifact.tensors().items():
        assert np.array_equal(pulled.tensors()[name], tensor)
    caplog.clear()
    report = export(theirs, pulled, ExportConfig(n_images=2)).report
    assert report.passed
    assert report.data == (
        "seeded noise: the manifest does not say where its own data (folder) lies"
    )
    assert caplog.messages == []


def test_data_that_are_gone_are_named_in_the_log_alone(
    stored: Pushed, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(place / "acme")
    with caplog.at_level(logging.WARNING):
        done = export(stored.store, stored.artifact, ExportConfig(formats=("delta",), n_images=2))
    assert done.report.data == "seeded noise: its own data (folder) is not at hand"
    assert any(str(place / "acme") in message for message in caplog.messages)
    copy_out(done, tmp_path / "out", ("merged", "delta"))
    require_silent(files_below(tmp_path / "out"))
    require_silent(files_below(done.folder))
    stored.push()
    require_silent(stored.files)


def as_before(task: Pushed, name: str, **changes: object) -> None:
    """Rewrite a file of an export as an earlier release did, and its record with it."""
    path = task.folder / name
    content = json.loads(path.read_bytes())
    for key, value in changes.items():
        inside, _, leaf = key.rpartition("__")
        (content[inside] if inside else content)[leaf] = value
    path.write_text(json.dumps(content), "utf-8")
    again = ExportRecord.of_folder(task.folder, task.artifact.manifest, "fp32", usable=True)
    again.write(task.folder)


def test_a_report_of_an_earlier_release_is_not_pushed(stored: Pushed) -> None:
    export_fp32(stored)
    as_before(
        stored, PARITY_FILE, data=f"2 test images of {stored.artifact.manifest.training.data}"
    )
    with pytest.raises(
        StoreError, match=r"parity\.json names the data's folder\. Export it again\."
    ):
        stored.push()
    assert stored.hub.repos == {}
    export_fp32(stored)
    stored.push()
    require_silent(stored.files)


def test_a_delta_that_an_earlier_release_copied_is_made_again(
    stored: Pushed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ExportConfig(formats=("delta",), n_images=2)
    export(stored.store, stored.artifact, config)
    as_before(stored, "delta/manifest.json", training__data=stored.artifact.manifest.training.data)
    done = export(stored.store, stored.artifact, ExportConfig(n_images=2))
    assert done.record.formats == ("merged",)
    assert any("names the data's folder" in message for message in caplog.messages)
    copy_out(export(stored.store, stored.artifact, config), tmp_path / "out", ("delta",))
    require_silent(files_below(tmp_path / "out"))


# The words


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("digits", "digits"),
        ("folder", "folder"),
        ("folder:/home/ann/acme", "folder"),
        ("lists:~/acme", "lists"),
        ("vtab:data/vtab-1k/svhn", "vtab"),
        ("folder:a\nb", "folder"),
        ("folder:C:\\acme", "folder"),
        ("/home/ann/acme", "unnamed"),
        ("acme data", "unnamed"),
        ("../acme:x", "unnamed"),
    ],
)
def test_of_a_data_spec_the_kind_stays(spec: str, kind: str) -> None:
    assert data_kind(spec) == kind
    assert data_kind(kind) == kind
    assert data_words(spec) == ("digits" if spec == "digits" else f"its own data ({kind})")


def with_training(artifact: Artifact, **changes: object) -> Any:
    training = artifact.manifest.training.model_copy(update=changes)
    return artifact.manifest.model_copy(update={"training": training})


def test_a_manifest_without_a_place_is_left_as_it_is(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path, data="digits")
    assert redacted(artifact.manifest) is artifact.manifest
    nothing = with_training(artifact, data=None, settings={"trained_on": None})
    assert redacted(nothing) is nothing
    hub_name = with_training(artifact, settings={"trained_on": "google/vit-base"})
    assert redacted(hub_name) is hub_name


def test_the_model_of_an_import_by_an_earlier_release_loses_its_folder(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path)
    manifest = with_training(
        artifact, method="imported", settings={"trained_on": "/home/ann/acme/vit", "n": 1}
    )
    assert redacted(manifest).training.settings == {"trained_on": "vit", "n": 1}
    assert manifest.training.settings["trained_on"] == "/home/ann/acme/vit"


@pytest.mark.parametrize("text", ["google/vit", "vit", "hf-hub:timm/vit.a1", "timm/vit@main"])
def test_the_name_of_a_repository_is_no_place(text: str) -> None:
    assert name_alone(text) == text


@pytest.mark.parametrize("spec", ["folder:/data/Zoë", 'folder:/data/"a"', "folder:a\\b"])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_place_is_found_however_json_spells_it(tmp_path: Path, spec: str, escaped: bool) -> None:
    _, artifact = make_stored_task(tmp_path, data=spec)
    text = json.dumps({"data": f"2 images of {spec}"}, ensure_ascii=escaped)
    assert names_place(artifact.manifest, text.encode())
    assert not names_place(artifact.manifest, b'{"data": "folder"}')
    assert not names_place(with_training(artifact, data="folder"), b"folder")


def test_noise_for_a_built_in_task_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(spec: str, **_: object) -> None:
        raise MissingDependencyError("scikit-learn", "demo", f"task {spec}")

    monkeypatch.setattr("glora_deploy.export.parity_check.inputs.load_task", missing)
    _, artifact = make_stored_task(tmp_path, data="digits")
    assert parity_inputs(artifact.manifest, "fp32", 2).data == (
        "seeded noise: digits is not at hand (task digits needs scikit-learn: "
        "pip install 'glora-deploy[demo]')"
    )
