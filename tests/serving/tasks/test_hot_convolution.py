"""Convolutions that a task adapts keep its weights when these are laid out as constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.serving.onnx_session import OnnxSession
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.store.export_record import MODEL_FILE
from marked_tasks import OpenEngine
from stored_tasks import make_backbone, make_stored_task

N_IMAGES = 4
RTOL, ATOL = 1e-4, 1e-4  # float32: two graphs of one network add up in another order


def test_a_hot_task_answers_as_its_exported_model(tmp_path: Path, open_engine: OpenEngine) -> None:
    backbone = make_backbone("resnet10t")
    store, artifact = make_stored_task(
        tmp_path / "artifacts", backbone=backbone, kinds=("conv",), scale=0.3
    )
    assert {layer.kind for layer in artifact.manifest.shapes().values()} == {"conv"}
    export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    exported = OnnxSession(store.export_dir(artifact, "fp32") / MODEL_FILE, 1)
    images = np.random.default_rng(0).standard_normal((N_IMAGES, 1, 3, 32, 32), np.float32)
    expected = [exported.logits(image) for image in images]
    engine = open_engine(store, hot_after=N_IMAGES)

    def require_answers() -> None:
        for image, logits in zip(images, expected, strict=True):
            request = InferRequest(task=artifact.task, images=image)
            found = engine.submit(request).result().logits
            np.testing.assert_allclose(found, logits, rtol=RTOL, atol=ATOL)

    engine.prefetch(artifact.task)
    size = engine.describe(artifact.task).size_bytes
    require_answers()
    while engine.describe(artifact.task).size_bytes == size:  # counted before it is made
        require_answers()
    (version, _) = engine._live.find(artifact.task, None)
    assert engine._weights.fix(version)  # waits until it is there
    require_answers()
