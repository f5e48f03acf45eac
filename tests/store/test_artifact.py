from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from json_changes import altered, leaves
from safetensors import safe_open
from safetensors.numpy import save

from factories import make_draft, make_store, make_tensors
from glora_deploy.errors import ArtifactError, NonFiniteError
from glora_deploy.glora.forms import LayerShape
from glora_deploy.store.artifact import ADAPTER, MANIFEST, Artifact, read_artifact, write_artifact
from glora_deploy.store.manifest import HEADER_BYTES, FileRecord, Manifest
from glora_deploy.store.store import ArtifactStore
from golden.write import DTYPES, FOLDER, TASK, UNBOUND, golden_tensors, write_golden

CREATED = "2026-01-02T03:04:05.678901Z"


def write(folder: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    draft = make_draft(**changes)
    tensors = make_tensors(draft) if tensors is None else tensors
    return write_artifact(folder, draft, tensors, task="pets", version="v1", created=CREATED)


def forged(artifact: Artifact, data: bytes) -> Artifact:
    """The artifact with other adapter bytes and a manifest that vouches for them."""
    (artifact.path / ADAPTER).write_bytes(data)
    manifest = artifact.manifest.model_copy(update={"adapter": FileRecord.of_bytes(data)})
    return Artifact(artifact.path, manifest)


def refusal(artifact: Artifact, error: type[Exception] = ArtifactError) -> str:
    with pytest.raises(error) as caught:
        artifact.tensors()
    message = str(caught.value)
    assert message.startswith(f"{artifact.path / ADAPTER}: ")
    assert "\n" not in message
    return message.removeprefix(f"{artifact.path / ADAPTER}: ")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_reading_gives_the_bits_that_were_written(tmp_path: Path, dtype: Any) -> None:
    tensors = make_tensors(dtype=dtype)
    write(tmp_path, tensors)
    found = read_artifact(tmp_path).tensors()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


def test_a_folder_holds_exactly_the_manifest_and_the_adapter(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [ADAPTER, MANIFEST]
    assert read_artifact(tmp_path) == artifact
    assert (artifact.task, artifact.version) == ("pets", "v1")


def test_writing_twice_gives_the_same_bytes_whatever_the_order_of_tensors(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", dict(reversed(make_tensors().items())))
    for name in (ADAPTER, MANIFEST):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_strides_and_byte_order_do_not_change_what_is_written(tmp_path: Path) -> None:
    plain = make_tensors()
    odd = {name: np.asfortranarray(tensor) for name, tensor in plain.items()}
    wide = np.zeros((8, 10), np.float32)
    wide[::2, ::2] = plain["head.weight"]
    odd["head.weight"] = wide[::2, ::2]
    odd["head.bias"] = plain["head.bias"].astype(">f4")
    write(tmp_path / "a", plain)
    write(tmp_path / "b", odd)
    assert (tmp_path / "a" / ADAPTER).read_bytes() == (tmp_path / "b" / ADAPTER).read_bytes()
    assert odd["head.bias"].dtype == np.dtype(">f4")
    assert np.array_equal(odd["head.bias"], plain["head.bias"])


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (ADAPTER, MANIFEST)] == [0o640] * 2


def test_the_adapter_says_what_it_is_without_its_manifest(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    with safe_open(tmp_path / ADAPTER, framework="np") as file:
        about = json.loads(file.metadata()["glora_deploy"])
    digest = artifact.manifest.digest()
    assert about == {
        "format_version": 1,
        "task": "pets",
        "version": "v1",
        "manifest_digest": digest,
    }


@pytest.mark.parametrize(("dtype", "item_bytes"), [(np.float32, 4), (np.float16, 2)])
def test_the_largest_delta_of_vit_b_is_its_numbers_and_at_most_64_kib(
    tmp_path: Path, dtype: Any, item_bytes: int
) -> None:
    every = "A=lora:4 B=lora:4 C=lora:4 D=vector E=vector"
    layers = {
        f"blocks.{block}.{name}": (
            LayerShape(kind="linear", d_out=d_out, d_in=d_in, bias=True),
            every,
        )
        for block in range(12)
        for name, d_out, d_in in (
            ("attn.qkv", 2304, 768),
            ("attn.proj", 768, 768),
            ("mlp.fc1", 3072, 768),
            ("mlp.fc2", 768, 3072),
        )
    }
    draft = make_draft(layers)
    tensors = make_tensors(draft, dtype=dtype)
    artifact = write_artifact(tmp_path, draft, tensors, task="pets", version="v1")
    manifest = artifact.manifest
    assert manifest.n_parameters == 1_603_776  # methods.md 1.7 gives 1.604M for rank 4
    n_numbers = manifest.n_parameters + manifest.n_head_parameters
    assert manifest.adapter.size_bytes <= item_bytes * n_numbers + HEADER_BYTES
    assert (tmp_path / ADAPTER).stat().st_size == manifest.adapter.size_bytes


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    size = artifact.manifest.adapter.size_bytes
    for length in reversed(range(size)):
        os.truncate(tmp_path / ADAPTER, length)
        assert refusal(artifact) == (
            f"has {length} bytes on disk, {size} in manifest.json. Restore the file."
        )


def test_a_longer_file_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    with (tmp_path / ADAPTER).open("ab") as file:
        file.write(b"\0")
    size = artifact.manifest.adapter.size_bytes
    assert refusal(artifact) == f"must have at most {size} bytes, got {size + 1}"


def flips(path: Path, step: int = 1) -> Iterator[int]:
    """Flip one bit of every step-th byte of a file in turn, restoring the one before."""
    data = path.read_bytes()
    with path.open("rb+", buffering=0) as file:
        for position in range(0, len(data), step):
            os.pwrite(file.fileno(), bytes([data[position] ^ 1 << position % 8]), position)
            yield position
            os.pwrite(file.fileno(), data[position : position + 1], position)


def test_a_flipped_bit_in_any_byte_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    for _ in flips(tmp_path / ADAPTER):
        assert refusal(artifact).startswith("sha256 is ")
    assert artifact.tensors().keys() == make_tensors().keys()


def test_a_cut_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / MANIFEST
    for length in reversed(range(path.stat().st_size - 1)):  # without its last newline it is whole
        os.truncate(path, length)
        with pytest.raises(ArtifactError, match=r"manifest\.json: "):
            read_artifact(tmp_path)


def test_a_flipped_bit_of_a_manifest_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    tensors, said = artifact.tensors(), artifact.manifest
    for _ in flips(tmp_path / MANIFEST):
        try:
            again = read_artifact(tmp_path)
            found = again.tensors()
        except (ArtifactError, NonFiniteError):
            continue
        assert {name: t.tobytes() for name, t in found.items()} == {
            name: t.tobytes() for name, t in tensors.items()
        }
        free = {"training": said.training.model_copy(update={"data": again.manifest.training.data})}
        assert again.manifest == said.model_copy(update=free)


def test_every_altered_value_of_a_manifest_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    stated = json.loads((tmp_path / MANIFEST).read_bytes())
    n_bound = 0
    for way in leaves(stated):
        if way == ("training", "data"):
            continue
        data = json.dumps(altered(stated, way)).encode()
        with pytest.raises(ArtifactError) as caught:
            read_with(data, artifact)
        assert "\n" not in str(caught.value), way
        n_bound += "it says has digest" in str(caught.value)
    # What no other rule holds together: names, numbers, labels, how it was trained.
    assert n_bound >= 30


def read_with(manifest: bytes, artifact: Artifact) -> dict[str, Any]:
    """The tensors of an artifact, its manifest being these bytes."""
    return Artifact(artifact.path, Manifest.from_json(manifest)).tensors()


def test_an_altered_manifest_is_named_with_both_digests(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    data = artifact.manifest.to_json()
    changed = data.replace(b'"cat"', b'"cow"')
    found = Manifest.from_json(changed).digest()
    with pytest.raises(ArtifactError) as caught:
        read_with(changed, artifact)
    assert str(caught.value) == (
        f"{tmp_path / MANIFEST}: what it says has digest {found[:12]}.., "
        f"{artifact.manifest.digest()[:12]}.. in {ADAPTER}. It was altered; restore the file."
    )


def test_layers_in_another_order_are_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    fields = json.loads(artifact.manifest.to_json())
    fields["layers"] = dict(reversed(fields["layers"].items()))
    with pytest.raises(ArtifactError, match="it says has digest"):
        read_with(json.dumps(fields).encode(), artifact)


def test_the_same_manifest_laid_out_otherwise_is_the_same(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    fields = json.loads(artifact.manifest.to_json())
    fields["training"] = dict(reversed(fields["training"].items()))
    fields["preprocessing"]["std"] = [5e-1, 0.50, 0.25]
    text = json.dumps(dict(reversed(fields.items())), indent=3)
    assert read_with(text.encode(), artifact).keys() == make_tensors().keys()


@pytest.mark.parametrize("data", [None, "folder:elsewhere", "not stated"])
def test_where_the_data_lie_may_be_blanked(tmp_path: Path, data: str | None) -> None:
    artifact = write(tmp_path)
    training = artifact.manifest.training.model_copy(update={"data": data})
    blanked = artifact.manifest.model_copy(update={"training": training})
    assert blanked.digest() == artifact.manifest.digest()
    assert read_with(blanked.to_json(), artifact).keys() == make_tensors().keys()


def test_the_digest_is_that_of_the_specification(tmp_path: Path) -> None:
    fields = json.loads(write(tmp_path).manifest.to_json())
    del fields["adapter"], fields["training"]["data"]
    fields["layers"] = [[name, fields["layers"][name]] for name in fields["layers"]]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert text.isascii()
    assert hashlib.sha256(text.encode()).hexdigest() == read_artifact(tmp_path).manifest.digest()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("[]", "glora_deploy in its metadata must be a JSON object"),
        ("{", "glora_deploy in its metadata must be a JSON object"),
        ('{"manifest_digest": 5}', "manifest_digest in its metadata must be 64 hex digits, got 5"),
        ('{"manifest_digest": "AB"}', "manifest_digest in its metadata must be 64 hex digits"),
    ],
)
def test_a_header_that_is_none_of_ours_is_refused(tmp_path: Path, about: str, message: str) -> None:
    artifact = forged(write(tmp_path), save(make_tensors(), {"glora_deploy": about}))
    assert refusal(artifact).startswith(message)


def test_swapped_adapters_are_refused_with_both_digests(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    two = write(tmp_path / "two", make_tensors(seed=2))
    (one.path / ADAPTER).rename(tmp_path / "other")
    (two.path / ADAPTER).rename(one.path / ADAPTER)
    assert refusal(one) == (
        f"sha256 is {two.manifest.adapter.sha256[:12]}.. on disk, "
        f"{one.manifest.adapter.sha256[:12]}.. in manifest.json. Restore the file."
    )


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    (tmp_path / ADAPTER).unlink()
    assert refusal(artifact) == "must be a file, none is here. Restore it."
    (tmp_path / ADAPTER).mkdir()
    assert refusal(artifact) == "must be a file, none is here. Restore it."
    (tmp_path / ADAPTER).rmdir()
    os.mkfifo(tmp_path / ADAPTER)
    assert refusal(artifact) == "must be a file, none is here. Restore it."


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json: must be a file, none is here"):
        read_artifact(tmp_path)


def with_header(change: Callable[[dict[str, Any]], None], data: bytes) -> bytes:
    """A safetensors file whose header was changed after the fact."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_hostile_headers_are_refused_even_if_the_manifest_vouches_for_them(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    data = (tmp_path / ADAPTER).read_bytes()
    name = "head.bias"

    def set_entry(key: str, value: Any) -> bytes:
        return with_header(lambda header: header[name].update({key: value}), data)

    n_bytes = sum(tensor.nbytes for tensor in make_tensors().values())
    hostile = {
        "nothing": b"",
        "no header": b"\0" * 8,
        "length beyond the file": (2**20).to_bytes(8, "little") + data[8:],
        "length of all bits": b"\xff" * 8 + data[8:],
        "header not JSON": data[:8] + b"x" * len(data[8:]),
        "offsets that overlap": set_entry("data_offsets", [0, 16]),
        "offsets reversed": set_entry("data_offsets", [16, 0]),
        "offsets outside": set_entry("data_offsets", [n_bytes, n_bytes + 16]),
        "negative offset": set_entry("data_offsets", [-16, 0]),
        "shape beyond the bytes": set_entry("shape", [2**62, 2]),
        "shape that overflows": set_entry("shape", [2**63, 2**63]),
        "negative shape": set_entry("shape", [-4]),
        "dtype unknown": set_entry("dtype", "OBJECT"),
        "data missing": data[:-16],
        "data left over": data + b"\0" * 16,
        "entry not an object": with_header(lambda header: header.update({name: [1]}), data),
        "name twice": data.replace(b'"head.weight"', b'"head.bias"  '),
        "pickle": pickle.dumps({"head.bias": [1.0]}),
        "zip of torch": b"PK\x03\x04" + data,
        "numpy": b"\x93NUMPY" + data,
    }
    for what, attack in hostile.items():
        message = refusal(forged(artifact, attack))
        assert message, what


class Bomb:
    """Leaves a file behind when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    artifact = write(tmp_path / "a")
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    refusal(forged(artifact, bomb))
    (artifact.path / MANIFEST).write_bytes(bomb)
    with pytest.raises(ArtifactError):
        read_artifact(artifact.path)
    assert not (tmp_path / "boom").exists()
    pickle.loads(bomb)
    assert (tmp_path / "boom").exists()


def test_tensors_that_differ_from_the_manifest_are_named_with_both_sides(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    tensors = make_tensors()

    def message(change: dict[str, Any], drop: str = "") -> str:
        changed = {name: t for name, t in {**tensors, **change}.items() if name != drop}
        return refusal(forged(artifact, save(changed)))

    qkv = "blocks.0.attn.qkv"
    assert message({}, drop=f"{qkv}.A_d") == f"{qkv}.A_d must be present"
    assert message({"blocks.1.attn.qkv.A": np.zeros((1, 1), np.float32)}) == (
        "blocks.1.attn.qkv.A must not be present"
    )
    assert message({f"{qkv}.A_d": np.zeros((3, 15), np.float32)}) == (
        f"{qkv}.A_d must have shape (15, 3) by the manifest, got (3, 15)"
    )
    assert message({"head.bias": np.zeros(4, np.float16)}) == (
        "head.bias is F16 in the file, F32 in manifest.json"
    )
    assert message({"head.bias": np.zeros(4, np.int32)}) == (
        "head.bias is I32 in the file, F32 in manifest.json"
    )
    assert message({"other": np.zeros(1, np.float32)}, drop="head.bias") == (
        "head.bias must be present (1 more)"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_on_both_ways(
    tmp_path: Path, dtype: Any, value: float
) -> None:
    tensors = make_tensors(dtype=dtype)
    artifact = write(tmp_path / "good", tensors)
    tensors["head.weight"][2, 3] = value
    expected = "head.weight must be finite, got 1 NaN or infinite of 20"
    with pytest.raises(NonFiniteError, match=f"tensors: {expected}"):
        write(tmp_path / "bad", tensors)
    assert list((tmp_path / "bad").iterdir()) == []
    assert refusal(forged(artifact, save(tensors)), NonFiniteError) == expected


def test_tensors_that_are_not_those_of_the_draft_are_refused(tmp_path: Path) -> None:
    tensors = make_tensors()

    def message(tensors: dict[str, Any], **changes: Any) -> str:
        with pytest.raises(ValueError, match=r"^(tensors|pets)") as caught:
            write(tmp_path, tensors, **changes)
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    qkv = "blocks.0.attn.qkv"
    short = {name: tensor for name, tensor in tensors.items() if name != f"{qkv}.E"}
    assert message(short) == f"tensors: {qkv}.E must be present"
    assert message({**tensors, "pos_embed": np.zeros(3, np.float32)}) == (
        "tensors: pos_embed must not be present"
    )
    assert message({**tensors, f"{qkv}.D": np.zeros(5, np.float32)}) == (
        f"tensors: {qkv}.D must have shape (15,) by the manifest, got (5,)"
    )
    assert message({**tensors, "head.bias": np.zeros(4)}) == (
        "tensors must all be one of float32, float16, bfloat16, got float32, float64"
    )
    assert message({}) == "tensors must all be one of float32, float16, bfloat16, got none"
    assert message(tensors, labels=("a", "b")) == (
        "pets: labels must have one entry for each of the 4 rows of head.bias, got 2"
    )
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
    assert message(headless) == "pets: head must hold head.weight, got []"


def test_a_head_of_two_parts_and_a_convolution_as_head_are_stored(tmp_path: Path) -> None:
    draft = make_draft()
    backbone = draft.backbone.model_copy(update={"classifier": ("head.fc", "head_dist")})
    tensors = {name: t for name, t in make_tensors().items() if not name.startswith("head")}
    heads = {
        "head.fc.weight": np.ones((4, 5, 1, 1), np.float32),
        "head_dist.weight": np.ones((4, 5), np.float32),
        "head_dist.bias": np.ones(4, np.float32),
    }
    artifact = write(tmp_path, {**tensors, **heads}, backbone=backbone)
    assert artifact.manifest.head == {name: tensor.shape for name, tensor in sorted(heads.items())}
    assert read_artifact(tmp_path).tensors()["head.fc.weight"].shape == (4, 5, 1, 1)


def test_a_manifest_serves_as_the_draft_of_another_version(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"pets": 1})
    first = store.get("pets")
    halved = {name: tensor.astype(np.float16) for name, tensor in first.tensors().items()}
    second = store.put("cats", halved, first.manifest)
    assert (second.task, second.manifest.dtype) == ("cats", "float16")
    assert second.manifest.layers == first.manifest.layers


@pytest.mark.parametrize("folder", [UNBOUND, FOLDER], ids=lambda folder: folder.name)
def test_the_golden_store_stays_readable(folder: Path) -> None:
    store = ArtifactStore.open(folder)
    assert store.tasks() == [TASK]
    assert store.versions(TASK) == ["v1", "v2", "v3"]
    assert store.current(TASK) == "v2"
    assert store.verify() == []
    for version, dtype in DTYPES.items():
        artifact = store.get(TASK, version)
        assert artifact.manifest.n_parameters == 145
        assert artifact.is_bound() == (folder == FOLDER)
        found = artifact.tensors()
        for name, tensor in golden_tensors(version).items():
            assert found[name].dtype == dtype
            assert np.array_equal(found[name], tensor)


def test_writing_the_golden_store_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_golden(tmp_path)
    for path in sorted(FOLDER.rglob("*")):
        again = tmp_path / path.relative_to(FOLDER)
        assert again.is_dir() if path.is_dir() else again.read_bytes() == path.read_bytes()
    assert len(list(tmp_path.rglob("*"))) == len(list(FOLDER.rglob("*"))) == 11
