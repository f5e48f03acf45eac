"""The code blocks of docs/python.md and docs/evaluate.md, run in their order.

Each runs in the names of those before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from glora_deploy.evaluation import labelled_images
from glora_deploy.evaluation.predictions import Classifier
from glora_deploy.export.onnx_model.write import describe
from glora_deploy.store.manifest_fields import PreprocessingRecord
from glora_deploy.training import pipeline
from tasks import make_images, make_task, use_small_backbone

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "python.md").read_text("utf-8")
EVALUATE_PAGE = (DOCS / "evaluate.md").read_text("utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)
FASTAPI = [block for block in BLOCKS if "fastapi" in block]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the blocks define; a task of colours and a small backbone stand in for the digits."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("docs"))
        for module in (pipeline, labelled_images):
            patch.setattr(module, "load_task", lambda spec, seed: make_task())
        use_small_backbone(patch)
        make_images(1, seed=5, size=40).image(0).save("seven.png")  # red
        for block in BLOCKS:
            if block not in FASTAPI:
                exec(block, found)
        yield found


def test_every_block_runs(names: dict[str, Any]) -> None:
    assert len(BLOCKS) == 5
    assert names["outcome"].artifact.task == "digits"
    assert names["outcome"].n_parameters <= 50_000
    assert names["exported"].report.passed
    answer = names["answer"]
    assert (answer.task, answer.version) == ("digits", "v1")
    assert answer.delta_sha256 == names["outcome"].artifact.manifest.adapter.sha256
    assert len(names["answers"]) == 3
    assert names["answers"][0] == names["answers"][1]
    assert names["labels"][names["logits"][0].argmax()] == answer.label


def test_the_lines_for_fastapi_answer_over_http(names: dict[str, Any]) -> None:
    for package in ("fastapi", "multipart", "httpx"):
        pytest.importorskip(package, reason=f"{package} is not installed; the project needs none")
    from fastapi.testclient import TestClient

    (block,) = FASTAPI
    exec(block, names)
    client = TestClient(names["app"])
    done = client.post("/predict", files={"image": Path("seven.png").read_bytes()})
    assert done.status_code == 200
    expected = names["predictor"].predict("seven.png")
    assert done.json() == {
        "top": [{"label": one.label, "probability": one.probability} for one in expected.top],
        "task": "digits",
        "version": "v1",
        "delta_sha256": expected.delta_sha256,
    }
    refused = client.post("/predict", files={"image": b"no image"})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("image: must be a whole JPEG, PNG, WEBP image")


def test_every_block_of_the_page_on_evaluation_runs(names: dict[str, Any]) -> None:
    names["train"]("digits", method="lora", epochs=1, lr=1e-5)  # v2, which can hardly answer
    blocks = BLOCK.findall(EVALUATE_PAGE)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["by_delta"].network == "delta"
    assert names["by_delta"].recorded_accuracy == names["metrics"].accuracy
    assert (names["by_export"].network, names["by_export"].version) == ("onnx", "v1")
    assert names["by_export"].metrics.accuracy == names["metrics"].accuracy
    assert len(names["wrong"]) == len(make_task().test) - names["metrics"].n_correct
    assert names["outside"].metrics.n_images == sum(len(x) for _, x in make_task().splits())
    assert names["second"].against_first.n_images == len(make_task().test)


def test_the_objects_that_the_page_on_evaluation_asks_for_are_described(
    names: dict[str, Any],
) -> None:
    asked = {name for name in dir(Classifier) if not name.startswith("_")}
    assert all(f"`{name}`" in EVALUATE_PAGE for name in asked)
    assert all(hasattr(names["predictor"], name) for name in asked)


def test_what_a_model_says_of_itself_is_documented(names: dict[str, Any]) -> None:
    session: onnxruntime.InferenceSession = names["session"]
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 3, 32, 32], "tensor(float)")
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", 3], "tensor(float)")
    section = PAGE.partition("## What an ONNX model says of itself")[2]
    told = {
        name
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    known = describe(task="a", version="b", labels=(), precision="fp32", preprocessing={})
    assert names["about"].keys() == known.keys()
    assert told == {"image", "logits", *known}
    for field in PreprocessingRecord.model_fields:
        assert f"`{field}`" in section
