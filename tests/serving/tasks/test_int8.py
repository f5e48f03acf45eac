"""Versions whose export holds an int8 model are answered from it, if the server is told so."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.export.int8.quantize import QuantizeConfig
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.serving.errors import LoadError
from glora_deploy.serving.onnx_session import OnnxSession
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.export_record import INT8_FILE
from glora_deploy.store.store import ArtifactStore
from marked_tasks import OpenEngine

Images = NDArray[np.float32]
TASK = "colours"


def quantise(store: ArtifactStore) -> None:
    """Add an int8 model to the export of ``colours``."""
    config = ExportConfig(formats=("int8",), quantize=QuantizeConfig(max_loss=1), n_images=1)
    assert "int8" in export(store, store.get(TASK), config).record.formats


def test_it_answers_from_the_int8_model_and_from_merged_weights_where_there_is_none(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    quantise(own_marked)
    path = own_marked.export_dir(own_marked.get(TASK), "fp32") / INT8_FILE
    engine = open_engine(own_marked, int8=True, hot_after=1)
    for _ in range(3):
        answer = engine.submit(InferRequest(task=TASK, images=images)).result()
        np.testing.assert_array_equal(answer.logits, OnnxSession(path, 1).logits(images))
        assert answer.delta_sha256 == own_marked.get(TASK).manifest.adapter.sha256
    about = engine.describe(TASK)
    assert (about.exported, about.mixed, about.in_memory) == ("int8", False, True)
    assert about.size_bytes == path.stat().st_size + (path.parent / "int8.json").stat().st_size
    merged = open_engine(own_marked).submit(InferRequest(task=TASK, images=images)).result()
    assert not np.array_equal(merged.logits, answer.logits)
    other = engine.submit(InferRequest(task="t1", images=images)).result()
    assert (other.logits.argmax(1) == 1).all()
    assert engine.describe("t1").exported is None


def test_it_is_let_go_and_loaded_again_within_the_budget(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    quantise(own_marked)
    engine = open_engine(own_marked, int8=True, memory_budget_bytes=0)
    answers = [
        engine.submit(InferRequest(task=task, images=images)).result().logits
        for task in (TASK, "t1", TASK)
    ]
    np.testing.assert_array_equal(answers[0], answers[2])
    assert engine.usage().swaps == 3
    assert engine.usage().weights_bytes == 0


def test_an_altered_model_is_refused_and_a_new_one_is_taken_on_load(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked, int8=True)
    assert engine.describe(TASK).exported is None
    before = engine.submit(InferRequest(task=TASK, images=images)).result().logits
    quantise(own_marked)
    assert engine.load(TASK).exported == "int8"
    after = engine.submit(InferRequest(task=TASK, images=images)).result().logits
    assert not np.array_equal(before, after)
    path = own_marked.export_dir(own_marked.get(TASK), "fp32") / INT8_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    fresh = open_engine(own_marked, int8=True)
    with pytest.raises(LoadError, match=rf"colours/v1 was refused: .*{INT8_FILE}"):
        fresh.load(TASK)


def test_int8_is_of_onnx_runtime_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="int8 must be served by onnxruntime on the CPU"):
        EngineSettings(int8=True, backend="torch")
