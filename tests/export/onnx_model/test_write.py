import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from glora_deploy.errors import ArtifactError, ExportError
from glora_deploy.export.onnx_model.graph_cache import UNREAD
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.write import attach, describe, write_onnx
from onnx_networks import (
    KINDS,
    N_IMAGES,
    make_images,
    make_network,
    make_skeleton,
    torch_logits,
    write_weights,
)

ATOL = 2e-5  # float32, logits of size 1 to 10, other summation orders
METADATA = {"task": "digits"}


def export(folder: Path, kind: str = "vit", seed: int = 0, *, single_file: bool = False) -> Path:
    write_weights(make_network(kind, seed), folder)
    return write_onnx(folder, make_skeleton(kind), METADATA, single_file=single_file)


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_computes_what_torch_computes(
    tmp_path: Path, kind: str, single_file: bool
) -> None:
    session = OnnxSession(export(tmp_path, kind, single_file=single_file))
    images = make_images(kind)
    expected = torch_logits(make_network(kind), images)
    for n in (1, 2, N_IMAGES):
        np.testing.assert_allclose(session.logits(images[:n]), expected[:n], rtol=0, atol=ATOL)
    assert np.ptp(expected, axis=0).min() > 100 * ATOL, "the images must be told apart"


def test_the_folder_holds_two_files_and_the_small_one_points_into_the_other(
    tmp_path: Path,
) -> None:
    path = export(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.safetensors"]
    assert path.stat().st_size < 100_000 < (tmp_path / "model.safetensors").stat().st_size
    stored = load_file(tmp_path / "model.safetensors")
    for weight in onnx.load(path).graph.initializer:
        if weight.name in stored:
            array = onnx.numpy_helper.to_array(weight)
            np.testing.assert_array_equal(array, stored.pop(weight.name).numpy())
    assert stored == {}


def test_one_file_holds_the_weights_bit_for_bit_and_needs_no_other(tmp_path: Path) -> None:
    path = export(tmp_path, single_file=True)
    beside = OnnxSession(export(tmp_path / "two")).logits(make_images("vit"))
    (tmp_path / "model.safetensors").unlink()
    np.testing.assert_array_equal(OnnxSession(path).logits(make_images("vit")), beside)


def test_one_file_is_what_protobuf_would_write_but_for_the_order(tmp_path: Path) -> None:
    path = export(tmp_path, single_file=True)
    found = onnx.load_model_from_string(path.read_bytes())
    assert len(found.SerializeToString()) == path.stat().st_size
    expected = attach(make_skeleton("vit"), tmp_path / "model.safetensors", METADATA)
    onnx.load_external_data_for_model(expected, str(tmp_path))
    for model in (found, expected):
        for weight in model.graph.initializer:
            weight.ClearField("data_location")
        model.graph.initializer.sort(key=lambda weight: weight.name)
    assert found == expected


def test_another_safetensors_file_in_its_place_is_another_model(tmp_path: Path) -> None:
    path = export(tmp_path)
    before = OnnxSession(path).logits(make_images("vit"))
    write_weights(make_network("vit", seed=9), tmp_path)
    swapped = OnnxSession(path).logits(make_images("vit"))
    fresh = OnnxSession(export(tmp_path / "fresh", seed=9)).logits(make_images("vit"))
    np.testing.assert_array_equal(swapped, fresh)
    assert np.abs(swapped - before).max() > 0.1


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = (export(tmp_path / name).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("single_file", [False, True])
def test_the_checker_passes_with_shapes_inferred(tmp_path: Path, single_file: bool) -> None:
    onnx.checker.check_model(export(tmp_path, single_file=single_file), full_check=True)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_the_mode_of_the_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = export(tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_metadata_says_what_the_file_is(tmp_path: Path) -> None:
    metadata = describe(
        task="digits",
        version="v3",
        labels=["null", "eins", "fünf"],
        precision="fp32",
        preprocessing={"mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    )
    write_weights(make_network("vit"), tmp_path)
    model = onnx.load(write_onnx(tmp_path, make_skeleton("vit"), metadata))
    found = {prop.key: prop.value for prop in model.metadata_props}
    assert found.keys() == {"task", "version", "labels", "precision", "preprocessing"}
    assert (found["task"], found["version"], found["precision"]) == ("digits", "v3", "fp32")
    assert json.loads(found["labels"]) == ["null", "eins", "fünf"]
    assert json.loads(found["preprocessing"])["interpolation"] == "bicubic"
    assert (model.producer_name, model.producer_version) == (
        "glora-deploy",
        version("glora-deploy"),
    )


def test_the_skeleton_is_not_modified(tmp_path: Path) -> None:
    skeleton = make_skeleton("vit")
    before = skeleton.SerializeToString()
    write_weights(make_network("vit"), tmp_path)
    write_onnx(tmp_path, skeleton, METADATA, single_file=True)
    assert skeleton.SerializeToString() == before


def test_batch_counters_of_batch_norm_may_lie_in_the_file(tmp_path: Path) -> None:
    assert "bn1.num_batches_tracked" in load_file(
        write_weights(make_network("efficientnet"), tmp_path)
    )
    attach(make_skeleton("efficientnet"), tmp_path / "model.safetensors", METADATA)


def test_missing_foreign_and_misshapen_tensors_are_named_together(tmp_path: Path) -> None:
    state = make_network("vit").state_dict()
    state["blocks.0.attn.qkv.A_d"] = torch.zeros(144, 4)
    state["head.weight"] = torch.zeros(6, 48)
    del state["head.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ExportError) as caught:
        write_onnx(tmp_path, make_skeleton("vit"), METADATA)
    assert str(caught.value) == (
        f"{tmp_path}/model.safetensors: blocks.0.attn.qkv.A_d must not be there; "
        "head.bias must be float32 (5,), got nothing; "
        "head.weight must be float32 (5, 48), got float32 (6, 48). "
        "Give the weights of this architecture in this precision."
    )
    assert not (tmp_path / "model.onnx").exists()


def test_weights_of_another_precision_are_refused(tmp_path: Path) -> None:
    write_weights(make_network("vit"), tmp_path, torch.float16)
    with pytest.raises(ExportError, match=r"must be float32 .*, got float16 .* and 29 more\. "):
        write_onnx(tmp_path, make_skeleton("vit"), METADATA)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    weights = write_weights(make_network("vit"), tmp_path)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        write_onnx(tmp_path, make_skeleton("vit"), METADATA)


def test_a_link_to_the_weights_is_refused_and_no_graph_is_left(tmp_path: Path) -> None:
    weights = write_weights(make_network("vit"), tmp_path)
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(ExportError, match=r"the graph must pass onnx\.checker, got: .*link"):
        write_onnx(tmp_path, make_skeleton("vit"), METADATA)
    assert not (tmp_path / "model.onnx").exists()


def make_giant(folder: Path) -> onnx.ModelProto:
    """A skeleton of one tensor of 2.4 GB, whose file takes no space: nothing may read it."""
    shape = (600_000_000,)
    header = json.dumps(
        {"big": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0]]}}
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * shape[0])
    big = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=shape)
    big.data_location = TensorProto.EXTERNAL
    ends = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"])
        for name in ("image", "logits")
    ]
    node = onnx.helper.make_node("Mul", ["image", "big"], ["logits"])
    graph = onnx.helper.make_graph([node], "giant", ends[:1], ends[1:], [big])
    model = onnx.helper.make_model(graph)
    model.metadata_props.add(key=UNREAD, value="[]")
    return model


def test_one_file_over_protobufs_limit_is_refused(tmp_path: Path) -> None:
    skeleton = make_giant(tmp_path)
    with pytest.raises(ExportError, match=r"must stay below 2 GiB, got 2\.2 GiB\. Leave the we"):
        write_onnx(tmp_path, skeleton, METADATA, single_file=True)
    assert not (tmp_path / "model.onnx").exists()


def test_weights_over_protobufs_limit_are_attached_beside_the_graph(tmp_path: Path) -> None:
    model = attach(make_giant(tmp_path), tmp_path / "model.safetensors", METADATA)
    (weight,) = model.graph.initializer
    place = {entry.key: entry.value for entry in weight.external_data}
    size = (tmp_path / "model.safetensors").stat().st_size
    assert int(place["length"]) == 2_400_000_000
    assert int(place["offset"]) == size - 2_400_000_000
