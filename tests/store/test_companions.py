"""Files beside a version: written with it, verified with it, and never in the way of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factories import make_draft, make_tensors
from glora_deploy.errors import ArtifactError, GloraDeployError
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.companions import COMPANION_RECORD, COMPANIONS, HISTORY, RUN_SETTINGS
from glora_deploy.store.store import ArtifactStore

BESIDE = {RUN_SETTINGS: b'task = "pets"\n', HISTORY: b"{}\n"}


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ArtifactStore, Artifact]:
    store = ArtifactStore.create(tmp_path)
    draft = make_draft()
    return store, store.put("pets", make_tensors(draft), draft, companions=BESIDE)


def problems(store: ArtifactStore) -> list[str]:
    return [finding.problem for finding in store.verify()]


def test_what_was_put_beside_a_version_is_read_from_there(
    stored: tuple[ArtifactStore, Artifact],
) -> None:
    store, artifact = stored
    for name, data in BESIDE.items():
        assert (artifact.path / name).read_bytes() == data
        assert store.companion(artifact, name) == data
    assert problems(store) == []
    assert store.get("pets") == artifact


def test_a_version_without_any_has_none_and_no_record(tmp_path: Path) -> None:
    store = ArtifactStore.create(tmp_path)
    draft = make_draft()
    artifact = store.put("pets", make_tensors(draft), draft)
    assert {path.name for path in artifact.path.iterdir()} == {
        "manifest.json",
        "adapter.safetensors",
    }
    assert store.companion(artifact, RUN_SETTINGS) is None
    assert problems(store) == []


def test_they_count_with_the_delta(stored: tuple[ArtifactStore, Artifact]) -> None:
    store, artifact = stored
    there = sum(path.stat().st_size for path in artifact.path.iterdir())
    assert store.sizes()["pets"].delta_bytes == there


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        (RUN_SETTINGS, b'task = "cats"\n', "sha256 is"),
        (RUN_SETTINGS, b"", "has 0 bytes on disk, 14 in companions.json"),
        (RUN_SETTINGS, b"#" * (COMPANIONS[RUN_SETTINGS].max_bytes + 1), "must have at most 65536"),
        (RUN_SETTINGS, None, "must be a file, none is here"),
        (COMPANION_RECORD, None, "run.toml: is not in companions.json. Move it away."),
        (COMPANION_RECORD, b"{}", "adapter_sha256: must be present"),
        (COMPANION_RECORD, b"[", "Invalid JSON"),
        ("notes.txt", b"", "notes.txt: is not part of an artifact. Move it away."),
    ],
)
def test_verify_reports_what_is_not_as_stated(
    stored: tuple[ArtifactStore, Artifact], name: str, data: bytes | None, problem: str
) -> None:
    store, artifact = stored
    path = artifact.path / name
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)
    found = problems(store)
    assert any(problem in line for line in found), found
    artifact.tensors()  # what is beside the delta is never in its way


def test_a_record_names_known_files_alone(stored: tuple[ArtifactStore, Artifact]) -> None:
    store, artifact = stored
    path = artifact.path / COMPANION_RECORD
    raw = json.loads(path.read_bytes())
    raw["files"]["../../x"] = raw["files"][HISTORY]
    path.write_text(json.dumps(raw))
    (found,) = problems(store)
    assert "must be one of run.toml, history.json, got '../../x'" in found
    with pytest.raises(ArtifactError, match="must be one of"):
        store.companion(artifact, HISTORY)


def test_a_record_of_another_delta_is_refused(stored: tuple[ArtifactStore, Artifact]) -> None:
    store, artifact = stored
    draft = make_draft()
    other = store.put("pets", make_tensors(draft, seed=1), draft, companions=BESIDE)
    (artifact.path / COMPANION_RECORD).write_bytes((other.path / COMPANION_RECORD).read_bytes())
    with pytest.raises(ArtifactError, match="is of the delta"):
        store.companion(artifact, HISTORY)


@pytest.mark.parametrize("name", [RUN_SETTINGS, COMPANION_RECORD])
def test_no_link_is_followed(
    stored: tuple[ArtifactStore, Artifact], tmp_path: Path, name: str
) -> None:
    store, artifact = stored
    (tmp_path / "elsewhere").write_bytes((artifact.path / name).read_bytes())
    (artifact.path / name).unlink()
    (artifact.path / name).symlink_to(tmp_path / "elsewhere")
    assert any("must not be a link" in line for line in problems(store))
    with pytest.raises(GloraDeployError, match="must not be a link"):
        store.companion(artifact, RUN_SETTINGS)


@pytest.mark.parametrize(
    ("companions", "message"),
    [
        ({"notes.txt": b""}, "must be one of run.toml, history.json, got 'notes.txt'"),
        ({RUN_SETTINGS: b"#" * 65537}, "run.toml must have at most 65536 bytes, got 65537"),
    ],
)
def test_what_cannot_lie_beside_a_version_is_refused_before_anything_is_written(
    tmp_path: Path, companions: dict[str, bytes], message: str
) -> None:
    store = ArtifactStore.create(tmp_path)
    draft = make_draft()
    with pytest.raises(ValueError, match=message):
        store.put("pets", make_tensors(draft), draft, companions=companions)
    assert store.tasks() == []
