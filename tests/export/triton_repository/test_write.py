from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tritonclient.grpc import model_config_pb2

from factories import LABELS, make_artifact, make_draft, make_store, make_tensors
from glora_deploy.errors import ArtifactError, ExportError, ParityError
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.export.triton_repository import write as triton
from glora_deploy.export.triton_repository.config_pbtxt import HEADER, TritonConfig, VersionRecord
from glora_deploy.export.triton_repository.write import TaskExport, TritonModel, write_triton
from glora_deploy.store.export_record import INT8_FILE, ExportRecord
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.tensorrt_runtime.plan_json import PlanInfo, TensorRecord
from stored_tasks import make_stored_task

SIZE = (3, 6, 8)
MEAN_AND_STD = '"mean":[0.5,0.25,0.125],"std":[0.5,0.5,0.25]'


def make_export(
    root: Path,
    task: str = "pets",
    *,
    seed: int = 1,
    labels: tuple[str, ...] = LABELS,
    usable: bool = True,
    single_file: bool = False,
) -> TaskExport:
    """A linear network in every form that Triton can serve, with the record of its export."""
    draft = make_draft(labels=labels)
    store = make_store(root / "store")
    manifest = store.put(task, make_tensors(draft, seed=seed), draft).manifest
    folder = root / "exports" / f"{task}-{manifest.version}"
    folder.mkdir(parents=True)
    weight = np.random.default_rng(seed).standard_normal((144, len(labels))).astype(np.float32)
    save_file({"head.weight": weight}, folder / "model.safetensors")
    onnx.save(make_linear_onnx(weight, None if single_file else folder), folder / "model.onnx")
    onnx.save(make_linear_onnx(weight, None), folder / INT8_FILE)
    (folder / "model.plan").write_bytes(f"plan of seed {seed}".encode())
    make_plan_info(folder)
    ExportRecord.of_folder(folder, manifest, "fp32", usable=usable).write(folder)
    return TaskExport(manifest=manifest, folder=folder)


def make_linear_onnx(weight: np.ndarray, folder: Path | None) -> onnx.ModelProto:
    """image (batch, 3, 6, 8) to logits; the weight lies in the folder's model.safetensors."""
    tensor = onnx.numpy_helper.from_array(weight, "head.weight")
    if folder is not None:
        size = (folder / "model.safetensors").stat().st_size
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {
            "location": "model.safetensors",
            "offset": size - weight.nbytes,
            "length": weight.nbytes,
        }.items():
            tensor.external_data.add(key=key, value=str(value))
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.weight"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])
    graph = helper.make_graph(nodes, "linear", [image], [logits], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_plan_info(folder: Path, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "library": "tensorrt",
        "version": "10.9.0",
        "gpu": "NVIDIA A10",
        "compute_capabilities": ("8.6",),
        "hardware_compatibility": None,
        "inputs": (TensorRecord(name="image", dtype="float32", shape=(-1, *SIZE)),),
        "outputs": (TensorRecord(name="logits", dtype="float32", shape=(-1, len(LABELS))),),
        "batch": (1, 4, 16),
        "precision": "fp32",
        "tf32": False,
        "refittable": False,
        "stripped": False,
        "parameters": ("head.weight",),
        "graph": FileRecord.of_file(folder / "model.onnx"),
        "weights": FileRecord.of_file(folder / "model.safetensors"),
        "plan": FileRecord.of_file(folder / "model.plan"),
        "build_seconds": 1.0,
    }
    (folder / "plan.json").write_bytes(PlanInfo(**{**fields, **changes}).to_json())


def with_plan_info(export: TaskExport, **changes: Any) -> TaskExport:
    """The same export, its plan described otherwise."""
    make_plan_info(export.folder, **changes)
    ExportRecord.of_folder(export.folder, export.manifest, "fp32", usable=True).write(export.folder)
    return export


def read_config(folder: Path) -> dict[str, Any]:
    """config.pbtxt as Triton's own schema understands it."""
    message = text_format.Parse(
        (folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def parameters(versions: Mapping[int, Manifest]) -> dict[str, dict[str, str]]:
    """Of a model with these versions, by number."""
    manifest = versions[max(versions)]
    values = {
        "task": manifest.task,
        "version": manifest.version,
        "precision": "fp32",
        "adapter_sha256": manifest.adapter.sha256,
        "preprocessing": f"{{{MEAN_AND_STD},"
        '"size":[6,8],"interpolation":"bicubic","crop_pct":0.875,"crop_mode":"center"}',
        "versions": json.dumps(
            {
                str(number): {"version": one.version, "adapter_sha256": one.adapter.sha256}
                for number, one in versions.items()
            }
        ),
    }
    return {key: {"string_value": value} for key, value in values.items()}


def warmup(batch_size: int) -> dict[str, Any]:
    image = {"data_type": "TYPE_FP32", "dims": ["3", "6", "8"], "input_data_file": "image"}
    return {"name": f"batch of {batch_size}", "batch_size": batch_size, "inputs": {"image": image}}


FULL_FLOAT32 = {
    "execution_accelerators": {
        "gpu_execution_accelerator": [{"name": "cuda", "parameters": {"use_tf32": "0"}}]
    }
}


def test_the_config_of_an_onnx_model_says_all_that_triton_needs(tmp_path: Path) -> None:
    made = make_export(tmp_path)
    config = TritonConfig(max_batch_size=6, max_queue_delay_us=500, instance_count=2)
    (model,) = write_triton(tmp_path / "repository", [made], config)
    assert model == TritonModel("pets", 1, tmp_path / "repository" / "pets", True)
    assert read_config(model.folder) == {
        "name": "pets",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 6,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": ["3", "6", "8"]}],
        "output": [
            {
                "name": "logits",
                "data_type": "TYPE_FP32",
                "dims": ["4"],
                "label_filename": "labels.txt",
            }
        ],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"count": 2}],  # and KIND_AUTO, which is zero and so left out
        "optimization": FULL_FLOAT32,
        "dynamic_batching": {"max_queue_delay_microseconds": "500"},
        "parameters": parameters({1: made.manifest}),
        "model_warmup": [warmup(1), warmup(6)],
    }


def test_the_config_of_a_plan_names_the_gpu_it_is_tied_to(tmp_path: Path) -> None:
    made = make_export(tmp_path)
    config = TritonConfig(kind="plan", max_batch_size=16, warmup=False)
    (model,) = write_triton(tmp_path / "repository", [made], config)
    found = read_config(model.folder)
    assert (found["platform"], found["backend"]) == ("tensorrt_plan", "tensorrt")
    assert found["cc_model_filenames"] == {"8.6": "model.plan"}
    assert found["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert "model_warmup" not in found
    assert sorted(contents(model.folder)) == [
        "1/model.plan",
        "1/source.json",
        "config.pbtxt",
        "labels.txt",
    ]
    assert contents(model.folder)["1/model.plan"] == b"plan of seed 1"


def test_a_plan_for_every_newer_gpu_is_tied_to_none(tmp_path: Path) -> None:
    made = with_plan_info(make_export(tmp_path), hardware_compatibility="ampere_plus")
    (model,) = write_triton(tmp_path / "repository", [made], TritonConfig(kind="plan"))
    assert "cc_model_filenames" not in read_config(model.folder)


def test_a_model_of_batch_one_is_not_batched_and_warmed_up_once(tmp_path: Path) -> None:
    config = TritonConfig(max_batch_size=1)
    (model,) = write_triton(tmp_path / "repository", [make_export(tmp_path)], config)
    found = read_config(model.folder)
    assert found["max_batch_size"] == 1
    assert "dynamic_batching" not in found
    assert found["model_warmup"] == [warmup(1)]


@pytest.mark.parametrize(
    ("kind", "instances", "expected"),
    [
        ("int8", "auto", "KIND_CPU"),
        ("onnx", "cpu", "KIND_CPU"),
        ("onnx", "gpu", "KIND_GPU"),
        ("plan", "gpu", "KIND_GPU"),
    ],
)
def test_instances_run_where_the_model_belongs(
    tmp_path: Path, kind: Any, instances: Any, expected: str
) -> None:
    config = TritonConfig(kind=kind, instances=instances)
    (model,) = write_triton(tmp_path / "repository", [make_export(tmp_path)], config)
    assert read_config(model.folder)["instance_group"] == [{"count": 1, "kind": expected}]


@pytest.mark.parametrize(
    ("kind", "instances", "runs_onnx_on_gpus"),
    [
        ("onnx", "auto", True),
        ("onnx", "gpu", True),
        ("onnx", "cpu", False),
        ("int8", "auto", False),
        ("plan", "auto", False),
    ],
)
def test_float32_products_are_not_rounded_to_tf32_on_a_gpu(
    tmp_path: Path, kind: Any, instances: Any, runs_onnx_on_gpus: bool
) -> None:
    config = TritonConfig(kind=kind, instances=instances)
    (model,) = write_triton(tmp_path / "repository", [make_export(tmp_path)], config)
    found = read_config(model.folder)
    assert found.get("optimization") == (FULL_FLOAT32 if runs_onnx_on_gpus else None)


def test_an_onnx_model_with_external_weights_becomes_the_folder_triton_opens(
    tmp_path: Path,
) -> None:
    made = make_export(tmp_path)
    (model,) = write_triton(tmp_path / "repository", [made], TritonConfig())
    found = contents(model.folder)
    assert sorted(found) == [
        "1/model.onnx/model.onnx",
        "1/model.onnx/model.safetensors",
        "1/source.json",
        "config.pbtxt",
        "labels.txt",
        "warmup/image",
    ]
    for name in ("model.onnx", "model.safetensors"):
        assert found[f"1/model.onnx/{name}"] == (made.folder / name).read_bytes()
    assert found["labels.txt"].decode() == "cat\ndog\nFührerschein\nowl\n"
    assert [path.name for path in tmp_path.iterdir()].count(".repository.new") == 0


def test_the_warmup_image_has_the_size_that_the_config_states_and_is_finite(
    tmp_path: Path,
) -> None:
    (model,) = write_triton(tmp_path / "repository", [make_export(tmp_path)], TritonConfig())
    image = np.frombuffer((model.folder / "warmup/image").read_bytes(), "<f4").reshape(SIZE)
    assert np.isfinite(image).all()
    assert image.std() > 0.5


@pytest.mark.parametrize("kind", ["onnx", "int8"])
def test_a_self_contained_onnx_model_stays_one_file(tmp_path: Path, kind: Any) -> None:
    made = make_export(tmp_path, single_file=True)
    (model,) = write_triton(tmp_path / "repository", [made], TritonConfig(kind=kind))
    original = made.folder / {"onnx": "model.onnx", "int8": INT8_FILE}[kind]
    assert (model.folder / "1/model.onnx").read_bytes() == original.read_bytes()


def test_neither_side_is_refused_for_having_a_second_name(tmp_path: Path) -> None:
    made = make_export(tmp_path)
    (model,) = write_triton(tmp_path / "repository", [made], TritonConfig())
    served, original = model.folder / "1/model.onnx/model.onnx", made.folder / "model.onnx"
    for path in (served, original):
        onnx.checker.check_model(path)
    images = np.random.default_rng(0).standard_normal((3, *SIZE), np.float32)
    expected = OnnxSession(original).logits(images)
    np.testing.assert_array_equal(OnnxSession(served).logits(images), expected)


@pytest.mark.slow
def test_a_real_export_answers_from_the_repository_as_it_does_from_the_store(
    tmp_path: Path,
) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    done = export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    made = TaskExport(manifest=artifact.manifest, folder=done.folder)
    (model,) = write_triton(tmp_path / "repository", [made], TritonConfig())
    input_size = artifact.manifest.backbone.input_size
    images = np.random.default_rng(0).standard_normal((3, *input_size), np.float32)
    found = OnnxSession(model.folder / "1/model.onnx/model.onnx").logits(images)
    np.testing.assert_array_equal(found, OnnxSession(done.folder / "model.onnx").logits(images))
    config = read_config(model.folder)
    assert config["output"][0]["dims"] == [str(found.shape[1])]
    assert config["input"][0]["dims"] == [str(size) for size in input_size]


def test_writing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    exports = [make_export(tmp_path, task) for task in ("pets", "signs")]
    repository = tmp_path / "repository"
    write_triton(repository, exports, TritonConfig())
    before = {path: path.lstat() for path in repository.rglob("*")}
    models = write_triton(repository, exports, TritonConfig())
    assert [(model.name, model.version, model.changed) for model in models] == [
        ("pets", 1, False),
        ("signs", 1, False),
    ]
    # Triton polls change times: a reload of what is loaded would cost an answer's time.
    assert {path: path.lstat().st_ctime_ns for path in repository.rglob("*")} == {
        path: stat.st_ctime_ns for path, stat in before.items()
    }


def test_a_new_artifact_becomes_the_next_version_and_replaces_the_old(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_triton(repository, [make_export(tmp_path, seed=1)], TritonConfig())
    second = make_export(tmp_path, seed=2)
    (model,) = write_triton(repository, [second], TritonConfig())
    assert (model.version, model.changed) == (2, True)
    assert sorted(path.name for path in model.folder.iterdir()) == [
        "2",
        "config.pbtxt",
        "labels.txt",
        "warmup",
    ]
    assert read_config(model.folder)["parameters"] == parameters({2: second.manifest})


def test_as_many_versions_stay_as_asked_and_each_says_what_it_is(tmp_path: Path) -> None:
    repository, config = tmp_path / "repository", TritonConfig(versions_kept=2, checksums=True)
    exports = [make_export(tmp_path, seed=seed) for seed in (1, 2, 3)]
    for made in exports:
        (model,) = write_triton(repository, [made], config)
    assert model.version == 3
    kept = sorted(path for path in model.folder.iterdir() if path.name.isdecimal())
    assert [path.name for path in kept] == ["2", "3"]
    assert [VersionRecord.read(path).version for path in kept] == ["v2", "v3"]
    for path, made in zip(kept, exports[1:], strict=True):
        weights = path / "model.onnx" / "model.safetensors"
        assert weights.read_bytes() == (made.folder / "model.safetensors").read_bytes()
        assert weights.stat().st_nlink == 1
    found = read_config(model.folder)
    assert found["version_policy"] == {"latest": {"num_versions": 2}}
    assert found["parameters"] == parameters({2: exports[1].manifest, 3: exports[2].manifest})
    (agent,) = found["model_repository_agents"]["agents"]
    assert agent["name"] == "checksum"
    assert agent["parameters"] == {
        f"MD5:{path}": hashlib.md5(data).hexdigest()
        for path, data in contents(model.folder).items()
        if path.startswith(("2/model", "3/model"))
    }
    assert len(agent["parameters"]) == 4


def test_a_version_with_other_classes_does_not_stay_under_a_config_that_contradicts_it(
    tmp_path: Path,
) -> None:
    repository, config = tmp_path / "repository", TritonConfig(versions_kept=5)
    write_triton(repository, [make_export(tmp_path, seed=1)], config)
    more = make_export(tmp_path, seed=2, labels=(*LABELS, "newt"))
    (model,) = write_triton(repository, [more], config)
    assert [path.name for path in model.folder.iterdir() if path.name.isdecimal()] == ["2"]
    assert read_config(model.folder)["output"][0]["dims"] == ["5"]


def test_another_config_keeps_the_version_and_its_files(tmp_path: Path) -> None:
    repository, made = tmp_path / "repository", make_export(tmp_path)
    write_triton(repository, [made], TritonConfig(max_batch_size=2))
    before = contents(repository / "pets" / "1")
    (model,) = write_triton(repository, [made], TritonConfig(max_batch_size=3))
    assert (model.version, model.changed) == (1, True)
    assert contents(model.folder / "1") == before
    assert read_config(model.folder)["max_batch_size"] == 3
    assert (model.folder / "1/model.onnx/model.safetensors").stat().st_nlink == 1


def test_a_damaged_version_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    repository, made = tmp_path / "repository", make_export(tmp_path)
    write_triton(repository, [made], TritonConfig())
    damaged = repository / "pets/1/model.onnx/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (model,) = write_triton(repository, [made], TritonConfig())
    assert (model.version, model.changed) == (2, True)


def test_a_version_number_can_be_chosen_above_the_newest(tmp_path: Path) -> None:
    repository, made = tmp_path / "repository", make_export(tmp_path)
    assert write_triton(repository, [made], TritonConfig(), version=7)[0].version == 7
    assert not write_triton(repository, [made], TritonConfig(), version=7)[0].changed
    for taken in (6, 7):
        with pytest.raises(ExportError, match=f"must be above 7, the newest there, got {taken}"):
            write_triton(repository, [make_export(tmp_path)], TritonConfig(), version=taken)


def test_models_of_other_people_are_left_alone(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    theirs = repository / "resnet"
    (theirs / "1").mkdir(parents=True)
    (theirs / "config.pbtxt").write_text('name: "resnet"\n')
    (theirs / "1" / "model.onnx").write_bytes(b"theirs")
    before = contents(theirs)
    write_triton(repository, [make_export(tmp_path)], TritonConfig())
    assert contents(theirs) == before
    message = f"{theirs}: must be free or a model that glora-deploy wrote"
    with pytest.raises(ExportError, match=message):
        write_triton(repository, [make_export(tmp_path, "resnet")], TritonConfig())
    assert contents(theirs) == before


def test_a_version_that_someone_put_into_our_model_is_not_removed(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_triton(repository, [make_export(tmp_path)], TritonConfig())
    (repository / "pets" / "9").mkdir()
    with pytest.raises(ArtifactError, match=r"source\.json: must be a file, none is here\. Move"):
        write_triton(repository, [make_export(tmp_path)], TritonConfig())
    assert (repository / "pets" / "9").is_dir()


@pytest.mark.parametrize(
    "name", ["mine.txt", "warmup/mine", "1/notes.txt", "1/model.onnx/mine", "drafts/a", "2"]
)
def test_a_file_that_someone_put_into_our_model_is_not_removed(tmp_path: Path, name: str) -> None:
    repository = tmp_path / "repository"
    write_triton(repository, [make_export(tmp_path)], TritonConfig())
    mine = repository / "pets" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    before = contents(repository)
    with pytest.raises(ExportError) as caught:
        write_triton(repository, [make_export(tmp_path)], TritonConfig())
    assert str(caught.value) == (
        f"{repository}/pets: must hold one model and nothing else, since it is replaced whole, got "
        f"{name.removesuffix('/a')}. Move what is not the model's away."
    )
    assert contents(repository) == before


def test_a_file_put_into_our_model_while_the_new_one_is_built_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    write_triton(repository, [make_export(tmp_path)], TritonConfig())
    mine = repository / "pets" / "mine.txt"
    monkeypatch.setattr(triton, "flush_tree", lambda _: mine.write_text("mine"))
    with pytest.raises(ExportError, match=r"nothing else, .*, got mine\.txt\."):
        write_triton(repository, [make_export(tmp_path)], TritonConfig())
    assert mine.read_text() == "mine"


def test_an_export_that_failed_its_parity_check_is_refused(tmp_path: Path) -> None:
    good, bad = make_export(tmp_path), make_export(tmp_path, "signs", usable=False)
    with pytest.raises(ParityError, match="signs-v1: must have passed its parity check, it failed"):
        write_triton(tmp_path / "repository", [good, bad], TritonConfig())
    assert not (tmp_path / "repository").exists()


def drop(name: str) -> Callable[[TaskExport], None]:
    return lambda export: (export.folder / name).unlink()


def truncate(export: TaskExport) -> None:
    path = export.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("onnx", drop("export.json"), "must be a finished export, none is here. Export it first"),
        ("onnx", drop("model.onnx"), "model.onnx: must be a file, .* with --fmt onnx"),
        ("plan", drop("model.plan"), "model.plan: must be a file, .* with --fmt trt"),
        ("int8", drop(INT8_FILE), "model.int8.onnx: must be a file, .* --quantize int8"),
        ("onnx", drop("model.safetensors"), "model.safetensors: must be a file, none is here"),
        ("onnx", truncate, "bytes on disk"),
    ],
)  # fmt: skip
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, kind: Any, spoil: Callable[[TaskExport], None], message: str
) -> None:
    made = make_export(tmp_path)
    spoil(made)
    with pytest.raises((ExportError, ArtifactError), match=message):
        write_triton(tmp_path / "repository", [made], TritonConfig(kind=kind))


def test_an_export_of_another_delta_is_refused(tmp_path: Path) -> None:
    made = make_export(tmp_path)
    other = make_artifact(make_store(tmp_path / "other"), seed=5)
    stale = TaskExport(manifest=other.manifest, folder=made.folder)
    with pytest.raises(ArtifactError, match=r"adapter_sha256 must be .*, got .* Export it again"):
        write_triton(tmp_path / "repository", [stale], TritonConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"library": "tensorrt_rtx"}, "must be built by tensorrt for Triton's backend"),
        ({"stripped": True}, "must hold its weights"),
        ({"batch": (1, 4, 7)}, "must take batches of 1 to 8, got a plan for 1 to 7"),
        ({"batch": (2, 4, 16)}, "must take batches of 1 to 8, got a plan for 2 to 16"),
    ],
)
def test_a_plan_that_triton_could_not_run_is_refused(
    tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    made = with_plan_info(make_export(tmp_path), **changes)
    with pytest.raises(ExportError, match=message):
        write_triton(tmp_path / "repository", [made], TritonConfig(kind="plan", max_batch_size=8))


@pytest.mark.parametrize("path", ["repository", "repository/below"])
def test_a_file_in_the_way_of_the_repository_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "repository").write_text("mine")
    with pytest.raises(ExportError, match="the repository must be a folder, a file is in the way"):
        write_triton(tmp_path / path, [make_export(tmp_path)], TritonConfig())
    assert (tmp_path / "repository").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
        ({"instance_count": 0}, "instance_count must be at least 1, got 0"),
        ({"versions_kept": 0}, "versions_kept must be at least 1, got 0"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us must be 0 or more, got -1"),
        ({"kind": "plan", "instances": "cpu"}, "instances must be gpu or auto"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TritonConfig(**changes)


def test_one_call_takes_each_task_once_and_positive_versions(tmp_path: Path) -> None:
    made = make_export(tmp_path)
    with pytest.raises(ValueError, match="must be of different tasks, got pets, pets"):
        write_triton(tmp_path / "repository", [made, made], TritonConfig())
    with pytest.raises(ValueError, match="version must be at least 1, got 0"):
        write_triton(tmp_path / "repository", [made], TritonConfig(), version=0)


@pytest.fixture
def two_steps(tmp_path: Path) -> Iterator[tuple[Path, list[TaskExport], list[dict[str, bytes]]]]:
    """A repository of two tasks, new versions of both, and what each folder holds before."""
    repository = tmp_path / "repository"
    write_triton(repository, [make_export(tmp_path, t, seed=1) for t in "ab"], TritonConfig())
    before = [contents(repository / task) for task in "ab"]
    yield repository, [make_export(tmp_path, t, seed=2) for t in "abc"], before
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_half_way_takes_back_what_was_exchanged(
    two_steps: tuple[Path, list[TaskExport], list[dict[str, bytes]]],
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    repository, exports, before = two_steps
    real, calls = triton.replace_folder, iter(range(99))

    def replace_folder(new: Path, place: Path) -> None:
        if next(calls) == failing:
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        real(new, place)

    monkeypatch.setattr(triton, "replace_folder", replace_folder)
    with pytest.raises(PermissionError):
        write_triton(repository, exports, TritonConfig())
    assert [contents(repository / task) for task in "ab"] == before
    assert sorted(path.name for path in repository.iterdir()) == ["a", "b"]
    assert not (repository.parent / ".repository.new").exists()


def test_a_new_task_is_taken_back_too(
    two_steps: tuple[Path, list[TaskExport], list[dict[str, bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository, (a, _, c), before = two_steps
    real = triton.replace_folder

    def replace_folder(new: Path, place: Path) -> None:
        if place.name == "a":
            raise KeyboardInterrupt
        real(new, place)

    monkeypatch.setattr(triton, "replace_folder", replace_folder)
    with pytest.raises(KeyboardInterrupt):
        write_triton(repository, [c, a], TritonConfig())
    assert contents(repository / "a") == before[0]
    assert sorted(path.name for path in repository.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("killed_at", ["flush_tree", "replace_folder", "after the second"])
def test_a_killed_export_leaves_whole_models_and_running_again_completes_them(
    two_steps: tuple[Path, list[TaskExport], list[dict[str, bytes]]],
    monkeypatch: pytest.MonkeyPatch,
    killed_at: str,
) -> None:
    repository, exports, before = two_steps
    real = triton.replace_folder

    def die(*_: Path) -> None:
        os._exit(9)

    def die_after_two(new: Path, place: Path) -> None:
        real(new, place)
        if place.name == "b":
            os._exit(9)

    child = os.fork()
    if child == 0:
        if killed_at == "after the second":
            monkeypatch.setattr(triton, "replace_folder", die_after_two)
        else:
            monkeypatch.setattr(triton, killed_at, die)
        write_triton(repository, exports, TritonConfig())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    found = [contents(repository / task) for task in "ab"]
    if killed_at == "after the second":
        assert all(sorted(model)[0].startswith("2/") for model in found)
    else:
        assert found == before
    # Triton takes every folder in here for a model: what a killed export leaves must lie outside.
    assert sorted(path.name for path in repository.iterdir()) == ["a", "b"]
    models = write_triton(repository, exports, TritonConfig())
    assert [model.version for model in models] == [2, 2, 1]
    for model, made in zip(models, exports, strict=True):
        weights = model.folder / str(model.version) / "model.onnx" / "model.safetensors"
        assert weights.read_bytes() == (made.folder / "model.safetensors").read_bytes()
    assert not (repository.parent / ".repository.new").exists()


def test_a_second_export_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, made = tmp_path / "repository", make_export(tmp_path)
    repository.mkdir()
    handle = os.open(repository, os.O_RDONLY)
    flock = fcntl.flock
    flock(handle, fcntl.LOCK_EX)
    order, asked = [], threading.Event()

    def ask(handle: int, operation: int) -> None:
        order.append("asked")
        asked.set()
        flock(handle, operation)
        order.append("held")

    def export() -> None:
        try:
            write_triton(repository, [made], TritonConfig())
        finally:
            asked.set()  # also if it never asks

    monkeypatch.setattr(fcntl, "flock", ask)
    second = threading.Thread(target=export)
    second.start()
    asked.wait()
    assert list(repository.iterdir()) == []
    order.append("freed")
    os.close(handle)
    second.join()
    assert order == ["asked", "freed", "held"]
    assert [path.name for path in repository.iterdir()] == ["pets"]


def test_without_leave_to_write_beside_the_repository_it_builds_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    made = make_export(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    seen = []
    real = triton.flush_tree

    def flush_tree(folder: Path) -> None:
        seen.append(folder.parent)
        real(folder)

    monkeypatch.setattr(triton, "flush_tree", flush_tree)
    write_triton(repository, [made], TritonConfig())
    assert seen == [repository / ".new"]
    assert [path.name for path in repository.iterdir()] == ["pets"]


def test_no_space_left_is_said_and_the_repository_stays(
    two_steps: tuple[Path, list[TaskExport], list[dict[str, bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository, exports, before = two_steps

    def copyfile(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(ExportError, match=r"no space left to .*; the repository is as it was"):
        write_triton(repository, exports, TritonConfig())
    assert [contents(repository / task) for task in "ab"] == before
    assert sorted(path.name for path in repository.iterdir()) == ["a", "b"]


def test_quotes_and_foreign_letters_survive_the_text_format(tmp_path: Path) -> None:
    labels = ('a "quoted" one', "back\\slash", "Führerschein")
    made = make_export(tmp_path, labels=labels)
    (model,) = write_triton(tmp_path / "repository", [made], TritonConfig())
    text = (model.folder / "config.pbtxt").read_text()
    assert text.startswith(HEADER)
    assert f"{MEAN_AND_STD}".replace('"', r"\"") in text
    assert read_config(model.folder)["parameters"] == parameters({1: made.manifest})
    assert (model.folder / "labels.txt").read_text("utf-8") == "".join(f"{n}\n" for n in labels)
