"""The store of two tasks that most tests here begin with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from factories import make_store
from glora_deploy.store.store import ArtifactStore


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed, and when, is the subject of test_store_crash.py."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return make_store(tmp_path / "store", {"pets": 3, "cats": 1})
