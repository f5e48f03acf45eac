"""Where the graph of a backbone comes from, and that nothing unproven or altered is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from glora_deploy.serving.engines.stored_graph import find_graph
from glora_deploy.serving.errors import LoadError
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import add_marked_task


@pytest.fixture
def unexported(own_store: ArtifactStore) -> Artifact:
    """A task of another number of classes, on the backbone of one that was exported."""
    return add_marked_task(own_store, own_store.get("colours"), "marked", mark=1, n_classes=4)


def names(graph: onnx.ModelProto) -> set[str]:
    return {weight.name for weight in graph.graph.initializer}


def without_skeletons(store: ArtifactStore) -> None:
    shutil.rmtree(store.root / ".skeletons")


def export_folder(store: ArtifactStore) -> Path:
    return store.export_dir(store.get("colours"), "fp32")


def test_any_proven_export_of_the_network_will_do(
    own_store: ArtifactStore, unexported: Artifact
) -> None:
    without_skeletons(own_store)
    exported = own_store.get("colours")
    graph = find_graph(own_store, unexported, "fp32", [unexported, exported])
    assert names(graph) >= {"head.weight", "blocks.0.attn.qkv.weight"}
    assert names(find_graph(own_store, exported, "fp32", [])) == names(graph)


def test_the_cache_of_traced_graphs_is_the_next_best(
    own_store: ArtifactStore, unexported: Artifact
) -> None:
    shutil.rmtree(export_folder(own_store))
    exported = own_store.get("colours")  # its number of classes is the key's
    assert "head.weight" in names(find_graph(own_store, unexported, "fp32", [exported]))
    (path,) = (own_store.root / ".skeletons").glob("*.onnx")
    path.write_bytes(b"")
    with pytest.raises(LoadError):
        find_graph(own_store, unexported, "fp32", [exported])


def test_without_one_the_command_that_makes_it_is_named(
    own_store: ArtifactStore, unexported: Artifact
) -> None:
    without_skeletons(own_store)
    with pytest.raises(LoadError) as refused:
        find_graph(own_store, unexported, "fp32", [unexported])
    assert str(refused.value).endswith("Run: glora export --task marked --fmt onnx --store STORE")
    with pytest.raises(LoadError, match=r"--precision fp16 --store STORE$"):
        find_graph(own_store, unexported, "fp16", [own_store.get("colours")])


@pytest.mark.parametrize("damage", ["graph", "unusable", "copied"])
def test_an_export_that_is_altered_or_failed_or_of_another_task_is_passed_over(
    damage: str, own_store: ArtifactStore, unexported: Artifact
) -> None:
    without_skeletons(own_store)
    exported, folder = own_store.get("colours"), export_folder(own_store)
    if damage == "graph":
        data = bytearray((folder / "model.onnx").read_bytes())
        data[-9] ^= 1
        (folder / "model.onnx").write_bytes(data)
    elif damage == "unusable":
        record = json.loads((folder / "export.json").read_text("utf-8"))
        (folder / "export.json").write_text(json.dumps({**record, "usable": False}), "utf-8")
    else:
        place = own_store.export_dir(unexported, "fp32")
        place.parent.mkdir()
        folder.rename(place)
    with pytest.raises(LoadError):
        find_graph(own_store, unexported, "fp32", [exported])


def test_the_graph_of_another_network_is_passed_over(
    own_store: ArtifactStore, unexported: Artifact
) -> None:
    without_skeletons(own_store)
    backbone = unexported.manifest.backbone
    other = backbone.model_copy(update={"model_args": {**backbone.model_args, "depth": 3}})
    deeper = Artifact(unexported.path, unexported.manifest.model_copy(update={"backbone": other}))
    with pytest.raises(LoadError):
        find_graph(own_store, deeper, "fp32", [own_store.get("colours")])
