"""An export whose files are whole and yet not those of its artifact: refused, and made again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from glora_deploy.errors import ArtifactError
from glora_deploy.export.pipeline import ExportConfig, export, prove_again
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.store import ArtifactStore
from stored_tasks import make_stored_task

Made = tuple[ArtifactStore, Artifact]
ALL = ExportConfig(formats=("delta", "onnx"), n_images=1)
HALF = ExportConfig(formats=("delta", "onnx"), precision="fp16", n_images=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two tasks on one backbone, exported in two precisions; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    store, artifact = make_stored_task(root)
    _, other = make_stored_task(root, "photos", seed=1, labels=("a", "b", "c"))
    for task in (artifact, other):
        for config in (ALL, HALF):
            export(store, task, config).report.require_passed()
    return store, artifact


@pytest.fixture
def own(made: Made, tmp_path: Path) -> Made:
    """A copy that a test may change."""
    shutil.copytree(made[0].root, tmp_path / "own")
    own = ArtifactStore.open(tmp_path / "own")
    return own, own.get("pets")


def state_again(folder: Path) -> None:
    """Write the sizes and digests of the files as they are now into export.json."""
    path = folder / "export.json"
    fields = json.loads(path.read_text())
    record = ExportRecord.model_validate_json(path.read_bytes())
    again = {n: record.files[n].of_file(folder / n).model_dump() for n in record.files}
    path.write_text(json.dumps({**fields, "files": again}))


def refused(own: Made) -> str:
    """What ``glora-export verify`` says, on one line."""
    with pytest.raises(ArtifactError) as caught:
        prove_again(*own, ExportConfig(n_images=1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made_again(own: Made, caplog: pytest.LogCaptureFixture) -> str:
    """The warnings of an export that adds ONNX, which is whole afterwards."""
    store, artifact = own
    with caplog.at_level(logging.WARNING):
        done = export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    done.report.require_passed()
    assert store.verify() == []
    assert prove_again(store, artifact, ExportConfig(n_images=1)).passed
    return caplog.text


def test_a_whole_export_of_another_task_is_refused_and_made_again(
    own: Made, caplog: pytest.LogCaptureFixture
) -> None:
    store, artifact = own
    place = store.export_dir(artifact, "fp32")
    shutil.rmtree(place)
    shutil.copytree(store.export_dir(store.get("photos"), "fp32"), place)
    message = "export.json: task must be 'pets', that of pets/v1 in fp32, got 'photos'."
    assert message in refused(own)
    (finding,) = store.verify()
    assert message in finding.problem
    assert "Nothing of it is kept" in made_again(own, caplog)


def test_a_whole_export_in_another_precision_is_refused_and_made_again(
    own: Made, caplog: pytest.LogCaptureFixture
) -> None:
    store, artifact = own
    place = store.export_dir(artifact, "fp32")
    shutil.rmtree(place)
    shutil.copytree(store.export_dir(artifact, "fp16"), place)
    message = "export.json: precision must be 'fp32', that of pets/v1 in fp32, got 'fp16'."
    assert message in refused(own)
    (finding,) = store.verify()
    assert message in finding.problem
    assert "Nothing of it is kept" in made_again(own, caplog)


MERGED = ("model.safetensors",)
DELTA = ("delta/adapter.safetensors", "delta/manifest.json")
GRAPH = ("model.onnx",)


@pytest.mark.parametrize(
    ("names", "source", "message", "kept"),
    [
        (MERGED, "pets/fp16", "model.safetensors: blocks.0.attn.proj.bias must be float32", True),
        (DELTA, "pets/fp16", "delta/manifest.json: dtype must be 'float32', got 'float16'.", False),
        (GRAPH, "pets/fp16", "model.onnx: precision must be 'fp32', got 'fp16'.", True),
        ((*MERGED, *GRAPH), "pets/fp16", "model.safetensors: blocks.0.attn.proj.bias must", True),
        (DELTA, "photos/fp32", "delta/manifest.json: its digest must be ", False),
        (GRAPH, "photos/fp32", "model.onnx: task must be 'pets', got 'photos'.", True),
        (("config.json",), "photos/fp32", "config.json: must be what follows from the", True),
    ],
)
def test_files_of_something_else_are_refused_and_made_again(
    own: Made,
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
    source: str,
    message: str,
    kept: bool,
) -> None:
    store, artifact = own
    place = store.export_dir(artifact, "fp32")
    task, _, precision = source.partition("/")
    for name in names:
        shutil.copyfile(store.export_dir(store.get(task), precision) / name, place / name)
    state_again(place)
    assert f"{place}/{message}" in refused(own)
    if MERGED[0] in names:
        (finding,) = store.verify()
        assert f"{place}/{message}" in finding.problem
    if names == GRAPH:  # it is asked for, and so made anew
        made_again(own, caplog)
    else:
        assert "is not kept" in made_again(own, caplog)
    # What was asked for, or what others read, is made again at once; the delta when asked for.
    assert (place / "delta").exists() == kept


def edit_graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "model.onnx"
        model = onnx.load_model(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return edit


def set_metadata(key: str, value: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in model.metadata_props if entry.key == key)
        entry.value = value

    return change


def move_weight(model: onnx.ModelProto) -> None:
    weight = next(w for w in model.graph.initializer if w.external_data)
    next(e for e in weight.external_data if e.key == "offset").value = "8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_graph(set_metadata("labels", '["x"]')), "labels must be "),
        (edit_graph(set_metadata("preprocessing", "{}")), "preprocessing must be "),
        (edit_graph(lambda model: model.ClearField("metadata_props")), "task must be 'pets', got "),
        (edit_graph(move_weight), "place of "),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\xff\xff"), "not a readable ONNX"),
    ],
)
def test_a_graph_that_says_something_else_is_refused(
    own: Made, change: Callable[[Path], object], message: str
) -> None:
    store, artifact = own
    place = store.export_dir(artifact, "fp32")
    change(place)
    state_again(place)
    assert f"{place / 'model.onnx'}: {message}" in refused(own)
    done = export(store, artifact, ExportConfig(n_images=1))  # adds nothing, and leaves it out
    assert done.record.formats == ("merged", "delta")
    assert store.verify() == []


def test_a_single_file_states_its_precision_too(own: Made) -> None:
    store, artifact = own
    single = ExportConfig(formats=("onnx",), single_file=True, n_images=1)
    export(store, artifact, single)
    assert prove_again(store, artifact, ExportConfig(n_images=1)).passed


def test_an_export_of_an_earlier_delta_of_the_same_name_is_made_again(
    own: Made, caplog: pytest.LogCaptureFixture
) -> None:
    store, artifact = own
    shutil.move(artifact.path / "exports", store.root / "exports")
    store.remove("pets")
    _, again = make_stored_task(store.root, seed=5)
    shutil.move(store.root / "exports", again.path / "exports")
    assert "adapter_sha256 must be " in refused((store, again))
    shutil.rmtree(again.path / "exports" / "fp16")
    assert "Nothing of it is kept" in made_again((store, again), caplog)
