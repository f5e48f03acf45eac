"""What tests of the store do to one with a task ``pets``, and see of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glora_deploy.errors import StoreError
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.store import ArtifactStore


def listing(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refusal(action: Callable[[], Any], error: type[Exception] = StoreError) -> str:
    """The one line that an action is refused with."""
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_export(store: ArtifactStore, precision: str = "fp32", **files: str) -> Path:
    """Put an export of text files in place, with the record of them."""
    artifact = store.get("pets")
    with store.replace_export(artifact, precision) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        record = ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=False)
        record.model_copy(update={"precision": precision}).write(folder)
    return store.export_dir(artifact, precision)


def read_export(folder: Path) -> dict[str, str]:
    """The text files of an export."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "export.json"}
