"""What lies on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from factories import make_store
from glora_deploy.store.store import ArtifactStore
from pets_store import listing, write_export

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_store_holds_exactly_what_the_format_says(store: ArtifactStore) -> None:
    assert listing(store.root) == [
        ".tmp",
        "cats",
        "cats/current",
        "cats/v1",
        "cats/v1/adapter.safetensors",
        "cats/v1/manifest.json",
        "pets",
        "pets/current",
        *(
            f"pets/v{n}{file}"
            for n in (1, 2, 3)
            for file in ("", "/adapter.safetensors", "/manifest.json")
        ),
    ]
    assert (store.root / "pets" / "current").read_bytes() == b"v3\n"


def test_folders_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = make_store(tmp_path / "store", {"pets": 1})
        write_export(store, a="1")
    finally:
        os.umask(before)
    for path in (store.root / "pets").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
