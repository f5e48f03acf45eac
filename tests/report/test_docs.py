"""The Python block of docs/report.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from glora_deploy.store.store import ArtifactStore

PAGE = Path(__file__).parent.parent.parent / "docs" / "report.md"


def test_the_block_runs(
    hostile_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    shutil.copytree(hostile_store.root, tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block.replace('"digits"', '"colours"'), names)
    assert names["written"].page == Path("digits-report/index.html")
    assert names["written"].page.is_file()
