"""What is found damaged, and what everything weighs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from glora_deploy.store.artifact import ADAPTER, MANIFEST
from glora_deploy.store.store import ArtifactStore, TaskSize
from pets_store import write_export

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def rewrite(path: Path, **changes: Any) -> None:
    """Replace fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def damage(store: ArtifactStore, what: str) -> None:
    v2, exports = store.root / "pets/v2", store.root / "pets/v3/exports"
    match what:
        case "adapter":
            with (v2 / ADAPTER).open("rb+") as file:
                file.write(b"\x01")
        case "no adapter":
            (v2 / ADAPTER).unlink()
        case "manifest":
            (v2 / MANIFEST).write_text("{}")
        case "stray in version":
            (v2 / "notes.txt").write_text("")
        case "stray in task":
            (store.root / "pets/readme").write_text("")
        case "folder without manifest":
            (store.root / "pets/v9").mkdir()
        case "current":
            (store.root / "pets/current").write_text("v9\n")
        case "current is a folder":
            (store.root / "pets/current").unlink()
            (store.root / "pets/current").mkdir()
        case "export changed":
            (exports / "fp32/a").write_text("2")
        case "export grown":
            (exports / "fp32/a").write_text("11")
        case "export missing":
            (exports / "fp32/a").unlink()
        case "export stray":
            (exports / "fp32/extra").write_text("")
        case "export linked":
            (exports / "fp32/a").rename(store.root.parent / "a")
            (exports / "fp32/a").symlink_to(store.root.parent / "a")
        case "export record":
            rewrite(exports / "fp32/export.json", files={"a": 1})
        case "export without record":
            (exports / "fp32/export.json").unlink()
        case "export is a file":
            (exports / "fp16").write_text("")


DAMAGES = {
    "adapter": ("v2", "pets/v2/adapter.safetensors: sha256 is "),
    "no adapter": ("v2", "pets/v2/adapter.safetensors: must be a file, none is here."),
    "manifest": ("v2", "pets/v2/manifest.json: must be an object with format_version."),
    "stray in version": ("v2", "pets/v2/notes.txt: is not part of an artifact."),
    "stray in task": (None, "pets/readme: is not part of a store."),
    "folder without manifest": (None, "pets/v9: is not part of a store."),
    "current": (None, "pets/current: names v9; versions here: v1, v2, v3."),
    "current is a folder": (None, "pets/current: must be a file that names a version"),
    "export changed": ("v3", "pets/v3/exports/fp32/a: sha256 is "),
    "export grown": ("v3", "pets/v3/exports/fp32/a: has 2 bytes on disk, 1 in export.json."),
    "export missing": ("v3", "pets/v3/exports/fp32/a: must be here by export.json."),
    "export stray": ("v3", "pets/v3/exports/fp32/extra: is not in export.json."),
    "export linked": ("v3", "pets/v3/exports/fp32/a: must not be a link"),
    "export record": ("v3", "pets/v3/exports/fp32/export.json: files.a: must be"),
    "export without record": ("v3", "pets/v3/exports/fp32/export.json: must be a file"),
    "export is a file": ("v3", "pets/v3/exports/fp16/export.json: must be a file"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_verify_names_whatever_is_damaged_and_only_that(store: ArtifactStore, what: str) -> None:
    write_export(store, a="1")
    assert store.verify() == []
    damage(store, what)
    (finding,) = store.verify()
    version, problem = DAMAGES[what]
    assert (finding.task, finding.version) == ("pets", version)
    assert finding.problem.startswith(f"{store.root}/{problem}")
    assert "\n" not in finding.problem
    assert store.verify("pets") == [finding]
    assert store.verify("cats") == []


def test_verify_goes_on_after_the_first_problem(store: ArtifactStore) -> None:
    write_export(store, a="1")
    whats = ("no adapter", "stray in task", "current", "export missing", "export stray")
    for what in whats:
        damage(store, what)
    (store.root / "cats" / "v1" / ADAPTER).unlink()
    assert len(store.verify()) == len(whats) + 1


def test_sizes_are_the_bytes_on_disk_and_count_a_linked_file_once(store: ArtifactStore) -> None:
    def size(*names: str) -> int:
        return sum((store.root / name).stat().st_size for name in names)

    place = write_export(store, a="12345")
    artifact = store.get("pets")
    with store.replace_export(artifact, "fp16") as folder:
        os.link(place / "a", folder / "a")
        (folder / MANIFEST).write_text("123")
    record = size("pets/v3/exports/fp32/export.json")
    deltas = [f"pets/v{n}/{name}" for n in (1, 2, 3) for name in (MANIFEST, ADAPTER)]
    assert store.sizes() == {
        "cats": TaskSize(size(f"cats/v1/{MANIFEST}", f"cats/v1/{ADAPTER}"), 0),
        "pets": TaskSize(size(*deltas), 5 + 3 + record),
    }
