"""What processes that died have left, and who sweeps it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from factories import make_artifact
from glora_deploy.store import atomic_files
from glora_deploy.store.store import ArtifactStore
from pets_store import write_export

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def leftovers(store: ArtifactStore) -> dict[str, Path]:
    """Scratch folders as different processes would have left them."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    host = atomic_files._host()
    tmp = store.root / ".tmp"
    folders = {
        "dead": tmp / f"{host}-{child}-{'0' * 16}",
        "alive": tmp / f"{host}-{os.getppid()}-{'1' * 16}",
        "alive, old": tmp / f"{host}-{os.getppid()}-{'2' * 16}",
        "elsewhere": tmp / f"00000000-{child}-{'3' * 16}",
        "elsewhere, old": tmp / f"00000000-{child}-{'4' * 16}",
        "not ours": tmp / "notes",
    }
    for name, folder in folders.items():
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text("x")
        if "old" in name or name == "not ours":
            day_ago = time.time() - 24 * 3600 - 60
            os.utime(folder, (day_ago, day_ago))
    return folders


@pytest.mark.parametrize("by", ["create", "put", "export"])
def test_what_dead_processes_left_is_swept_and_nothing_else(
    store: ArtifactStore, leftovers: dict[str, Path], by: str
) -> None:
    match by:
        case "create":
            ArtifactStore.create(store.root)
        case "put":
            make_artifact(store)
        case "export":
            write_export(store, a="1")
    kept = {name for name, folder in leftovers.items() if folder.exists()}
    assert kept == {"alive", "elsewhere", "not ours"}
    for name in kept:
        assert (leftovers[name] / "sub" / "file").read_text() == "x"
    assert store.verify() == []
