"""Pull with the real huggingface_hub client against a Hub on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from safetensors.numpy import load, save

from glora_deploy.backbones.load import load_backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, HubError, StoreError
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.store.store import ArtifactStore
from hub_server import READ
from pushed import DELTA, NOBODY, REPO, Pushed
from stored_tasks import make_backbone, make_stored_task

# huggingface_hub 2.4 hands httpx2 2.16 a large file in a way that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_pulled_delta_is_the_pushed_one(task: Pushed, tmp_path: Path) -> None:
    task.push()
    said: list[str] = []
    pulled = task.pull(tmp_path / "other", on_step=said.append)
    assert (pulled.task, pulled.version) == ("pets", "v1")
    expected = task.artifact.tensors()
    found = pulled.tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes()
    assert pulled.manifest.training == task.artifact.manifest.training
    assert any(task.hub.repos[REPO].branches["main"] in text for text in said)
    assert not [request for request in task.hub.requests if "model.safetensors" in request]


def test_a_pulled_task_exports_to_the_pushed_weights(task: Pushed, tmp_path: Path) -> None:
    task.push()
    pulled = task.pull(tmp_path / "other")
    again = export(ArtifactStore(tmp_path / "other"), pulled, ExportConfig(n_images=2))
    found = load((again.folder / "model.safetensors").read_bytes())
    for name, tensor in load(task.files["model.safetensors"]).items():
        assert found[name].tobytes() == tensor.tobytes()


def test_a_task_that_is_there_already_gets_the_next_version(task: Pushed, tmp_path: Path) -> None:
    task.push()
    versions = [task.pull(tmp_path / "other").version for _ in range(2)]
    named = task.pull(tmp_path / "other", task="cats")
    assert versions == ["v1", "v2"]
    assert (named.task, named.version) == ("cats", "v1")
    assert ArtifactStore(tmp_path / "other").current("pets") == "v2"


def test_both_files_of_a_delta_come_from_one_commit(task: Pushed, tmp_path: Path) -> None:
    task.push()
    sha = task.hub.repos[REPO].branches["main"]
    task.pull(tmp_path / "other")
    fetched = [r for r in task.hub.requests if r.startswith("GET") and "adapter" in r]
    assert fetched == [f"GET /{REPO}/resolve/{sha}/glora/adapter.safetensors"]


def test_a_revision_can_be_a_branch_or_a_commit(task: Pushed, tmp_path: Path) -> None:
    task.push(revision="next")
    task.pull(tmp_path / "a", revision="next")
    task.pull(tmp_path / "b", revision=task.hub.repos[REPO].branches["next"])
    with pytest.raises(HubError, match=r"must hold glora/manifest\.json and adapter\.safetensors"):
        task.pull(tmp_path / "c")
    with pytest.raises(HubError, match="the revision must be a branch, tag or commit"):
        task.pull(tmp_path / "d", revision="gone")


@pytest.mark.parametrize("name", sorted(DELTA))
def test_a_damaged_delta_leaves_the_store_as_it_was(
    task: Pushed, tmp_path: Path, name: str
) -> None:
    task.push()
    data = bytearray(task.files[name])
    data[-2] ^= 1
    task.hub.repos[REPO].commit("main", {**task.files, name: bytes(data)})
    with pytest.raises(ArtifactError, match=Path(name).name):
        task.pull(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_delta_lacking_its_tensors_is_refused(task: Pushed, tmp_path: Path) -> None:
    task.push()
    files = {name: data for name, data in task.files.items() if "adapter" not in name}
    task.hub.repos[REPO].commit("main", files)
    with pytest.raises(HubError, match="Only what was pushed by glora-deploy can be pulled"):
        task.pull(tmp_path / "other")


def test_a_private_delta_needs_a_token(task: Pushed, tmp_path: Path) -> None:
    task.push(private=True)
    with pytest.raises(HubError, match=r"anyone without a token can see, none is\. Log in"):
        task.pull(tmp_path / "other")
    assert task.pull(tmp_path / "other", token=READ).task == "pets"


def test_a_repository_that_is_not_there_is_named(task: Pushed, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=f"^{REPO}: must be a model repository that your token"):
        task.pull(tmp_path / "other", token=READ)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"revision": "gone"}, HubError, "the revision must be a branch, tag or commit"),
        ({"token": "hf_wrong"}, HubError, "needs a valid token, got one that the Hub refuses"),
        ({"task": "../pets"}, StoreError, "task must be 1 to 64 of"),
        ({"checkpoint": "no.npz"}, StoreError, "no.npz: the checkpoint must be a file"),
    ],
    ids=["revision", "token", "task", "checkpoint"],
)
def test_a_failed_pull_makes_no_store(
    task: Pushed, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    task.push()
    with pytest.raises(error, match=message):
        task.pull(tmp_path / "new" / "store", **changes)
    assert not (tmp_path / "new").exists()


def test_a_pull_into_a_file_or_as_no_slug_asks_the_hub_for_nothing(
    task: Pushed, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="the store must be a folder, got a file"):
        task.pull(tmp_path / "file")
    with pytest.raises(StoreError, match="task must be 1 to 64 of"):
        task.pull(tmp_path / "other", task="../pets")
    assert task.hub.requests == []
    assert (tmp_path / "file").read_text() == "mine"


def test_a_lost_download_is_taken_up_again(task: Pushed, tmp_path: Path) -> None:
    task.push()
    task.hub.faults = [("^HEAD .*manifest", "drop"), ("^HEAD .*adapter", 503)]
    assert task.pull(tmp_path / "other").task == "pets"
    assert task.hub.faults == []


def test_offline_only_the_cache_is_used(
    task: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.push()
    task.pull(tmp_path / "a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    before = list(task.hub.requests)
    assert task.pull(tmp_path / "b").version == "v1"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    said: list[str] = []
    with pytest.raises(HubError, match="must be in the local cache while HF_HUB_OFFLINE is set"):
        task.pull(tmp_path / "c", on_step=said.append)
    assert task.hub.requests == before
    assert not any("trying again" in text for text in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": NOBODY}, r"the Hub did not answer \("),
        ({"token": "hf_wrong"}, "needs a valid token, got one that the Hub refuses"),
    ],
    ids=["nobody answers", "token"],
)
def test_the_cache_does_not_stand_in_for_the_hub(
    task: Pushed, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    task.push()
    task.pull(tmp_path / "a")
    with pytest.raises(HubError, match=f"^{REPO}: {message}"):
        task.pull(tmp_path / "b", **changes)
    assert not (tmp_path / "b").exists()


def test_a_commit_that_the_cache_has_needs_no_hub(task: Pushed, tmp_path: Path) -> None:
    task.push()
    task.pull(tmp_path / "a")
    commit = task.hub.repos[REPO].branches["main"]
    assert task.pull(tmp_path / "b", revision=commit, endpoint=NOBODY).version == "v1"


@pytest.mark.parametrize("fault", [401, 503])
def test_a_file_that_the_hub_fails_to_serve_does_not_come_from_an_older_commit(
    task: Pushed, tmp_path: Path, fault: int
) -> None:
    task.push()
    task.pull(tmp_path / "a")
    older = task.hub.repos[REPO].branches["main"]
    task.hub.repos[REPO].commit("main", {**task.files, "notes.txt": b"new"})
    task.hub.faults = [("^HEAD .*manifest", fault)]
    said: list[str] = []
    task.pull(tmp_path / "b", on_step=said.append)
    assert task.hub.faults == []
    assert f"{REPO} is at commit {task.hub.repos[REPO].branches['main']}" in said
    assert older not in "".join(said)


# The backbone of a pulled delta


def push_from(task: Pushed, root: Path, source: str, name: str = "test_vit") -> Pushed:
    """Push a task of a backbone that claims to come from ``source``."""
    backbone = replace(load_backbone(name, checkpoint="random:1"), source=source)
    store, artifact = make_stored_task(root, backbone=backbone, kinds=("linear",))
    assert export(store, artifact, ExportConfig(n_images=1)).report.passed
    pushed = Pushed(task.hub, store, artifact)
    pushed.push()
    return pushed


def test_a_timm_backbone_is_fetched_where_the_store_lacks_it(
    task: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", task.hub.endpoint)
    template = task.hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    pushed = push_from(task, tmp_path / "a", "timm:test_vit.r160_in1k")
    model = load_backbone("test_vit", checkpoint="random:1").build(1000)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    task.hub.add("timm/test_vit.r160_in1k", {"model.safetensors": save(weights)})
    pulled = pushed.pull(tmp_path / "b")
    kept = ArtifactStore(tmp_path / "b").backbone_path(pulled.manifest.backbone.fingerprint)
    assert {entry.name for entry in kept.iterdir()} == {"config.json", "model.safetensors"}
    card = task.files["README.md"].decode()
    assert "base_model: timm/test_vit.r160_in1k\n" in card


def test_a_backbone_from_a_file_has_to_be_given(task: Pushed, tmp_path: Path) -> None:
    pushed = push_from(task, tmp_path / "a", "file:mine.safetensors")
    with pytest.raises(StoreError, match=r"the weights of mine.safetensors .* with --checkpoint"):
        pushed.pull(tmp_path / "b")
    with pytest.raises(BackboneMismatchError, match="this is random:2"):
        pushed.pull(tmp_path / "b", checkpoint="random:2")
    assert not (tmp_path / "b").exists()
    assert pushed.pull(tmp_path / "b", checkpoint="random:1").version == "v1"


def test_a_backbone_the_store_keeps_is_not_fetched(task: Pushed, tmp_path: Path) -> None:
    task.push()
    backbone = make_backbone()
    store = ArtifactStore.create(tmp_path / "other")
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, tensors, backbone.config())
    said: list[str] = []
    task.pull(tmp_path / "other", on_step=said.append)
    assert not any("backbone" in text for text in said)
