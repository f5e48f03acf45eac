"""The program ``glora`` called in this process, and stores of no network for it to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner, Result

from factories import make_draft, make_store, make_tensors
from glora_deploy.commands.main import app
from glora_deploy.parity import PARITY_FILE, Report, Step
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_listed_store(root: Path) -> ArtifactStore:
    store = make_store(root, {"cats": 1, "pets": 2})
    fingerprint = store.get("pets").manifest.backbone.fingerprint
    folder = root / ".backbones" / fingerprint
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 3_000_000)
    return store


def make_whole_store(root: Path, *tasks: str) -> ArtifactStore:
    """One version of each task, and the backbone of all."""
    store = ArtifactStore.create(root)
    backbone = {"w": np.arange(6, dtype=np.float32)}
    digest = fingerprint(backbone)
    draft = make_draft()
    recorded = draft.backbone.model_copy(update={"fingerprint": digest})
    draft = draft.model_copy(update={"backbone": recorded})
    for task in tasks:
        store.put_backbone(digest, backbone, {"name": "toy"})
        store.put(task, make_tensors(), draft)
    store.release_backbones()
    return store


def write_export(store: ArtifactStore, task: str, of: str) -> Path:
    """An fp32 export of one task, in the folder of another."""
    manifest = store.get(of).manifest
    place = store.export_dir(store.get(task), "fp32")
    place.mkdir(parents=True)
    step = Step(stage="merged-fp32", inputs="noise", n_images=1, outcome="pass")
    report = Report(
        task=manifest.task,
        version=manifest.version,
        precision="fp32",
        adapter_sha256=manifest.adapter.sha256,
        data="noise",
        steps=(step,),
    )
    (place / PARITY_FILE).write_bytes(report.to_json())
    ExportRecord.of_folder(place, manifest, "fp32", usable=True).write(place)
    return place
