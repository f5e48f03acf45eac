"""The code block of docs/serving-engine.md, run; what its tables name exists."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.serving.tasks.settings import EngineSettings
from stored_tasks import make_stored_task

PAGE = (Path(__file__).parent.parent / "docs" / "serving-engine.md").read_text("utf-8")


def test_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    store, artifact = make_stored_task(tmp_path / "artifacts", "digits", kinds=("linear",))
    config = ExportConfig(formats=("merged", "onnx"), n_images=2)
    assert export(store, artifact, config).report.passed
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["about"].state == "READY"
    digest = artifact.manifest.adapter.sha256
    assert {answer.delta_sha256 for answer in names["answers"]} == {digest}
    assert not names["engine"].ready
    shutil.rmtree(tmp_path / "artifacts")


def test_settings_are_called_what_the_page_calls_them() -> None:
    told = set(re.findall(r"`(\w+)(?:=[^`]+)?`", PAGE))
    assert EngineSettings.__dataclass_fields__.keys() - told <= {"threads", "prefetch", "pins"}
