from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from glora_deploy.errors import ArtifactError
from glora_deploy.store.mapped_safetensors import create_tensor_file, map_tensors, read_layout

TENSORS = {
    "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "blocks.0.bias": np.array([1, -2], np.float16),
    "wide": np.array([[np.pi]], np.float64),
    "half": np.array([1.5, 2.5, -0.0], ml_dtypes.bfloat16),
    "index": np.array([[1, 2], [3, 4]], np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(7, np.float32),
}


def write_all(path: Path) -> None:
    specs = {name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()}
    for name, target in create_tensor_file(path, specs, {"task": "pets"}).items():
        target[...] = TENSORS[name]


def assert_same(found: dict[str, np.ndarray]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_what_is_written_here_the_library_reads_bit_for_bit(tmp_path: Path) -> None:
    write_all(tmp_path / "a.safetensors")
    assert_same(load_file(tmp_path / "a.safetensors"))


def test_what_the_library_writes_is_mapped_here_bit_for_bit(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    assert_same(dict(map_tensors(tmp_path / "a.safetensors")))


def test_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    data = path.read_bytes()
    for name, place in read_layout(path).items():
        raw = data[place.offset : place.offset + place.size_bytes]
        assert raw == TENSORS[name].tobytes()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    write_all(tmp_path / "a")
    write_all(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_released_pages_keep_their_content(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    specs = {name: (np.dtype(np.float32), (300, 70)) for name in "xyz"}
    out = create_tensor_file(path, specs, {})
    for value, name in enumerate("xyz"):
        out[name][...] = value
        out.release(name)
    assert [float(out[name].min()) for name in "xyz"] == [0, 1, 2]
    assert float(load_file(path)["z"].max()) == 2


def test_a_map_of_an_existing_file_is_read_only(tmp_path: Path) -> None:
    write_all(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="read-only"):
        map_tensors(tmp_path / "a.safetensors")["wide"][...] = 0


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    write_all(tmp_path / "a")
    with pytest.raises(FileExistsError):
        write_all(tmp_path / "a")


@pytest.mark.parametrize("keep", [0, 7, 8, 50, -1])
def test_truncated_files_are_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"a\.safetensors: not a readable safetensors file"):
        read_layout(path)


def test_dtypes_nobody_here_reads_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(ArtifactError, match="x has dtype F8_E4M3"):
        read_layout(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        map_tensors(tmp_path / "nowhere")
