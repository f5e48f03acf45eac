"""What every test process needs before anything is imported, and what many tests share."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from glora_deploy.store.store import ArtifactStore

if shutil.which("nvidia-smi") is None:
    # Triton reads it when a kernel is defined, and collecting doctests imports every module.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and programs that are started here inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def colour_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that no test changes, as ``colour_files`` writes it."""
    from colour_files import write_colours

    root = tmp_path_factory.mktemp("images") / "colours"
    write_colours(root)
    return root


@pytest.fixture(scope="session")
def colour_store(colour_images: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A store with ``colours/v1`` and ``v2``, trained on them, that no test changes."""
    from colour_files import train_colours

    return train_colours(colour_images, tmp_path_factory.mktemp("trained") / "artifacts")
