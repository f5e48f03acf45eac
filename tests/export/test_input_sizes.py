"""A backbone whose input is not square, from the training to every file of an export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from typer.testing import CliRunner

from glora_deploy.export.cli.commands import app as export_app
from glora_deploy.parity import Report
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training.cli import app as training_app

HEIGHT, WIDTH = 24, 40


@pytest.mark.parametrize("backbone", ["demo-vit", "resnet10t"])
def test_a_task_is_trained_and_exported_at_another_height_than_width(
    tmp_path: Path, backbone: str
) -> None:
    size = ("--input-size", f"{HEIGHT}x{WIDTH}")
    layers = () if backbone == "demo-vit" else ("--layers", "conv", "--checkpoint", "random:0")
    trained = CliRunner().invoke(
        training_app,
        [
            *("--task", "digits", "--method", "lora", "--epochs", "1", "--ranks", "2"),
            *("--backbone", backbone, *layers, *size, "--drop-path", "0"),
            *("--store", str(tmp_path)),
        ],
    )
    assert trained.exit_code == 0, trained.output
    exported = CliRunner().invoke(
        export_app,
        [
            *("--task", "digits", "--fmt", "merged", "--fmt", "onnx", "--images", "4"),
            *("--store", str(tmp_path)),
        ],
    )
    assert exported.exit_code == 0, exported.output
    store = ArtifactStore.open(tmp_path)
    artifact = store.get("digits")
    assert artifact.manifest.backbone.input_size == (3, HEIGHT, WIDTH)
    assert artifact.manifest.preprocessing.size == (HEIGHT, WIDTH)
    folder = store.export_dir(artifact, "fp32")
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, HEIGHT, WIDTH]
    assert Report.model_validate_json((folder / "parity.json").read_bytes()).passed

    images = np.random.default_rng(0).standard_normal((2, 3, HEIGHT, WIDTH)).astype(np.float32)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.ptp(expected))
