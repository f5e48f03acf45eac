from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from factories import LAYERS, make_draft
from glora_deploy.errors import ArtifactError
from glora_deploy.glora.forms import LayerForms, Subnet
from glora_deploy.store.manifest import Manifest, ManifestDraft, utc_now
from glora_deploy.store.manifest_fields import FileRecord, slug_problem

N_SUPPORTS = 5 + (10 + 24) + 1 + 5 + 5 + 1 + 5 + (45 + 15) + 1 + (10 + 2) + 15 + 1
N_HEAD = 4 * 5 + 4


def make_manifest(**changes: Any) -> Manifest:
    draft = make_draft()
    fields: dict[str, Any] = {
        **{name: getattr(draft, name) for name in ManifestDraft.model_fields},
        "format_version": 1,
        "task": "pets",
        "version": "v1",
        "created": "2026-01-02T03:04:05.678901Z",
        "head": {"head.weight": (4, 5), "head.bias": (4,)},
        "dtype": "float32",
        "n_parameters": N_SUPPORTS,
        "n_head_parameters": N_HEAD,
        "adapter": FileRecord(sha256="ef" * 32, size_bytes=4 * (N_SUPPORTS + N_HEAD) + 900),
    }
    return Manifest(**{**fields, **changes})


def as_json() -> dict[str, Any]:
    return json.loads(make_manifest().to_json())


def changed(path: str, value: Any) -> bytes:
    """The JSON of a valid manifest with one value replaced; ``/`` between keys."""
    fields = as_json()
    *way, last = path.split("/")
    place = fields
    for key in way:
        place = place[key]
    place[last] = value
    return json.dumps(fields).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        Manifest.from_json(data, where="M")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("M: ")
    return message.removeprefix("M: ")


def test_writing_then_reading_gives_the_same_manifest_and_the_same_bytes() -> None:
    manifest = make_manifest()
    data = manifest.to_json()
    assert Manifest.from_json(data) == manifest
    assert Manifest.from_json(data).to_json() == data


def test_layers_and_labels_keep_their_order() -> None:
    backwards = dict(reversed(make_draft().layers.items()))
    manifest = make_manifest(layers=backwards, labels=("z", "a", "m", "a"))
    again = Manifest.from_json(manifest.to_json())
    assert list(again.layers) == list(reversed(LAYERS))
    assert again.labels == ("z", "a", "m", "a")


def test_the_file_begins_with_what_a_reader_needs_first() -> None:
    assert list(as_json()) == [
        "format_version",
        "task",
        "version",
        "created",
        "dtype",
        "n_parameters",
        "n_head_parameters",
        "adapter",
        "backbone",
        "preprocessing",
        "labels",
        "layers",
        "training",
        "head",
    ]


def test_tensor_shapes_names_every_tensor_of_the_delta() -> None:
    assert make_manifest().tensor_shapes() == {
        "patch_embed.proj.A": (5, 1),
        "patch_embed.proj.B_d": (5, 2),
        "patch_embed.proj.B_u": (2, 12),
        "patch_embed.proj.D": (1,),
        "patch_embed.proj.E": (5,),
        "blocks.0.norm1.A": (5, 1),
        "blocks.0.norm1.B": (1, 1),
        "blocks.0.norm1.E": (5,),
        "blocks.0.attn.qkv.A_d": (15, 3),
        "blocks.0.attn.qkv.A_u": (3, 5),
        "blocks.0.attn.qkv.B": (1, 1),
        "blocks.0.attn.qkv.C_d": (5, 2),
        "blocks.0.attn.qkv.C_u": (2, 1),
        "blocks.0.attn.qkv.D": (15,),
        "blocks.0.attn.qkv.E": (1,),
        "head.weight": (4, 5),
        "head.bias": (4,),
    }


def test_shapes_and_subnet_come_back_as_they_were_given() -> None:
    manifest = Manifest.from_json(make_manifest().to_json())
    assert manifest.shapes() == {name: shape for name, (shape, _) in LAYERS.items()}
    assert manifest.subnet() == Subnet(
        {name: LayerForms.parse(paths) for name, (_, paths) in LAYERS.items()}
    )
    assert manifest.subnet().n_parameters(manifest.shapes()) == manifest.n_parameters


def test_labels_of_any_language_are_kept() -> None:
    labels = ("Führerschein", "می‌خواهم", "猫", "a, b")
    assert Manifest.from_json(make_manifest(labels=labels).to_json()).labels == labels


REFUSED = {
    "task escaping": (
        "task",
        "../up",
        "task: must be 1 to 64 of A-Z a-z 0-9 . _ - and start with a letter or digit, got '../up'",
    ),
    "task with newline": (
        "task",
        "pets\n",
        "task: must be 1 to 64 of A-Z a-z 0-9 . _ - and start with a letter or digit, "
        "got 'pets\\n'",
    ),
    "task of a route": ("task", "stats", "task: must not be the reserved word 'stats'"),
    "version of a file": (
        "version",
        "current",
        "version: must not be the reserved word 'current'",
    ),
    "no such day": (
        "created",
        "2026-02-30T00:00:00.000000Z",
        "created: must be a time that exists, got '2026-02-30T00:00:00.000000Z'",
    ),
    "local time": (
        "created",
        "2026-02-03T00:00:00.000000+01:00",
        None,
    ),
    "dtype": (
        "dtype",
        "float64",
        "dtype: must be 'float32', 'float16' or 'bfloat16', got 'float64'",
    ),
    "support count": (
        "n_parameters",
        N_SUPPORTS + 1,
        f"n_parameters must be {N_SUPPORTS}, the sum over its tensors, got {N_SUPPORTS + 1}",
    ),
    "head count": (
        "n_head_parameters",
        N_HEAD - 1,
        f"n_head_parameters must be {N_HEAD}, the sum over its tensors, got {N_HEAD - 1}",
    ),
    "count as text": ("n_parameters", str(N_SUPPORTS), None),
    "adapter too small": (
        "adapter/size_bytes",
        4 * (N_SUPPORTS + N_HEAD) - 1,
        None,
    ),
    "adapter too large": ("adapter/size_bytes", 2**30, None),
    "adapter digest": ("adapter/sha256", "EF" * 32, None),
    "digest with newline": ("adapter/sha256", "ef" * 32 + "\n", None),
    "fewer labels than rows": (
        "labels",
        ["a", "b"],
        "labels must have one entry for each of the 4 rows of head.weight, got 2",
    ),
    "label of two lines": ("labels", ["a", "b\nc", "d", "e"], None),
    "label of nothing": ("labels", ["a", "", "d", "e"], None),
    "head elsewhere": ("head/blocks.9.weight", [4, 5], None),
    "head without rows": ("head/head.bias", [], None),
    "head with a zero size": ("head/head.weight", [4, 0], None),
    "layer is the classifier": (
        "backbone/classifier",
        ["blocks.0.attn"],
        "layers must not hold the classifier, got 'blocks.0.attn.qkv'",
    ),
    "classifier without weight": (
        "backbone/classifier",
        ["head", "head_dist"],
        "head must hold head_dist.weight, got ['head.bias', 'head.weight']",
    ),
    "layer of no kind": ("layers/blocks.0.norm1/kind", "attention", None),
    "affine with columns": (
        "layers/blocks.0.norm1/d_in",
        2,
        "layers.blocks.0.norm1: d_in of an affine layer must be 1, got 2",
    ),
    "affine with lora": ("layers/blocks.0.norm1/paths/A", "lora:2", None),
    "bias support without bias": ("layers/blocks.0.attn.qkv/bias", False, None),
    "path of rank zero": ("layers/blocks.0.attn.qkv/paths/A", "lora:0", None),
    "path with other digits": ("layers/blocks.0.attn.qkv/paths/A", "lora:٣", None),
    "path with a leading zero": ("layers/blocks.0.attn.qkv/paths/A", "lora:03", None),
    "path of vast rank": ("layers/blocks.0.attn.qkv/paths/A", "lora:" + "9" * 5000, None),
    "vast layer": ("layers/blocks.0.attn.qkv/d_out", 2**40, None),
    "negative layer": ("layers/blocks.0.attn.qkv/d_out", -15, None),
    "layer name with a path": ("layers/a\\b", {}, None),
    "backbone of another fingerprint length": ("backbone/fingerprint", "ab", None),
    "source with a folder": ("backbone/source", "file:../weights.npz", None),
    "source unknown": ("backbone/source", "https://example.org/w", None),
    "input of four sizes": ("backbone/input_size", [3, 6, 8, 1], None),
    "mean per channel": (
        "preprocessing/mean",
        [0.5],
        "preprocessing.mean must have one entry for each of 3 channels, got 1",
    ),
    "std of zero": ("preprocessing/std", [0.5, 0.0, 0.5], None),
    "size unlike the input": (
        "preprocessing/size",
        [8, 6],
        "preprocessing.size must be the input's (6, 8), got (8, 6)",
    ),
    "interpolation": ("preprocessing/interpolation", "random", None),
    "crop above two": (
        "preprocessing/crop_pct",
        2.5,
        "preprocessing.crop_pct: must be less than or equal to 2, got 2.5",
    ),
    "accuracy in percent": (
        "training/test_accuracy",
        93.5,
        "training.test_accuracy: must be less than or equal to 1, got 93.5",
    ),
    "negative time": ("training/seconds", -1.0, None),
    "method with spaces": ("training/method", "my method", None),
}


@pytest.mark.parametrize(("path", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_breaks_a_rule_is_refused_by_name(
    path: str, value: Any, message: str | None
) -> None:
    found = refusal(changed(path, value))
    if message is not None:
        assert found == message
    else:
        assert path.split("/")[0] in found


def records(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a manifest whose keys are fixed, with the path to it."""
    layers = fields["layers"]
    yield "", fields
    for name in ("adapter", "backbone", "preprocessing", "training"):
        yield name, fields[name]
    for name, layer in layers.items():
        yield f"layers.{name}", layer
        yield f"layers.{name}.paths", layer["paths"]


def test_a_missing_field_is_refused_by_name_wherever_it_is_missing() -> None:
    n_fields = 0
    for where, record in records(as_json()):
        for field in record:
            fields = as_json()
            del dict(records(fields))[where][field]
            expected = f"{where}.{field}".lstrip(".")
            found = refusal(json.dumps(fields).encode())
            if expected == "format_version":
                assert "format_version" in found
            else:
                assert found == f"{expected}: must be present"
            n_fields += 1
    assert n_fields == 14 + 2 + 6 + 6 + 12 + 3 * (5 + 5)


def test_an_unknown_field_is_refused_by_name_wherever_it_is() -> None:
    for where, _ in records(as_json()):
        fields = as_json()
        dict(records(fields))[where]["note"] = 1
        expected = f"{where}.note".lstrip(".")
        assert refusal(json.dumps(fields).encode()) == (
            f"{expected}: is not a field of this format"
        )


def test_every_field_is_explained_in_the_specification() -> None:
    specification = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    for where, record in records(as_json()):
        for field in record:
            if not where:
                assert f"`{field}" in specification or f"**{field}.**" in specification, field
            else:
                assert f"{field}`" in specification, field


def test_several_problems_give_one_line_that_counts_them() -> None:
    fields = as_json()
    del fields["adapter"], fields["head"]
    fields["training"]["seed"] = -1
    assert refusal(json.dumps(fields).encode()).endswith("(2 more)")


@pytest.mark.parametrize("version", [2, 0, -1, "1", 1.5, True, 1.0, None, [1]])
def test_another_format_version_is_refused_with_the_version_that_is_read(version: Any) -> None:
    assert refusal(json.dumps({"format_version": version, "new": True}).encode()) == (
        "format_version must be 1, the only one this release reads, "
        f"got {version!r}. Use the glora-deploy that wrote it, or a newer one."
    )


NOT_JSON = {
    "nothing": b"",
    "text": b"manifest",
    "cut": make_manifest().to_json()[:-10],
    "garbage after": make_manifest().to_json() + b"{}",
    "not UTF-8": make_manifest().to_json().replace("ü".encode(), b"\xff"),
    "a number": b"1",
    "a list": b"[1]",
    "deep": b"[" * 200_000,
    "deep inside": b'{"format_version": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": make_manifest().to_json().replace(b"0.875", b"NaN"),
    "infinity": make_manifest().to_json().replace(b"0.875", b"-Infinity"),
    "a field twice": make_manifest().to_json().replace(b'"seed": 7', b'"seed": 7, "seed": 8'),
    "vast number": make_manifest().to_json().replace(b'"seed": 7', b'"seed": ' + b"7" * 5000),
    "vast exponent": make_manifest().to_json().replace(b"0.875", b"1e999"),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os",
    "vast file": b" " * (16 * 2**20 + 1),
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    assert len(refusal(data)) < 250


def test_a_field_given_twice_is_named() -> None:
    assert "key 'seed' must occur once" in refusal(NOT_JSON["a field twice"])


def test_a_head_tensor_outside_the_classifiers_is_named() -> None:
    draft = make_draft()
    backbone = draft.backbone.model_copy(update={"classifier": ("head", "head_dist")})
    head = {f"{name}.weight": (4, 5) for name in ("head", "head_dist", "blocks.9")}
    rule = "head must hold tensors of head, head_dist only, got 'blocks.9.weight'"
    with pytest.raises(ValidationError, match=re.escape(rule)):
        make_manifest(backbone=backbone, head=head, n_head_parameters=60)


def test_a_number_that_is_not_finite_is_named() -> None:
    for name, text in (("NaN", "NaN"), ("infinity", "-Infinity")):
        told = refusal(NOT_JSON[name])
        assert told == f"must be JSON: numbers must be finite, got {text}. Restore the file."


def test_a_file_may_be_as_long_as_the_limit_and_is_named_by_default() -> None:
    data = make_manifest().to_json()
    padded = data + b" " * (16 * 2**20 - len(data))
    assert Manifest.from_json(padded) == make_manifest()
    with pytest.raises(ArtifactError, match=rf"^manifest\.json: .* {16 * 2**20} bytes, got"):
        Manifest.from_json(padded + b" ")


def test_the_file_is_for_people_too() -> None:
    data = make_manifest(labels=("ä", "b", "c", "d")).to_json()
    assert data.startswith(b'{\n "format_version": 1,\n "task": "pets",\n')
    assert '"ä"'.encode() in data
    assert data.endswith(b"\n}\n")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=4,
)


def all_paths(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*way, key)
        yield from all_paths(value[key], (*way, key))


BASE = as_json()


@settings(max_examples=300, deadline=None)
@given(way=st.sampled_from(list(all_paths(BASE))), value=JSON_VALUES)
def test_any_value_in_any_place_is_refused_or_survives_a_round_trip(
    way: tuple[Any, ...], value: Any
) -> None:
    fields = copy.deepcopy(BASE)
    place: Any = fields
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    data = json.dumps(fields).encode("utf-8", "surrogatepass")
    try:
        manifest = Manifest.from_json(data)
    except ArtifactError:
        assert refusal(data)
        return
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.n_parameters == sum(map(math.prod, manifest.support_shapes().values()))


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("aZ0._-/\\\0\n %~:"), max_size=6) | st.text(max_size=70))
def test_a_slug_is_always_one_visible_name_inside_its_folder(name: str) -> None:
    if slug_problem("task", name) is None:
        root = Path("/store")
        assert (root / name).parent == root
        assert name == name.strip()
        assert name.isascii()
        assert not name.startswith(".")
        assert 1 <= len(name) <= 64


@pytest.mark.parametrize("name", ["a", "cifar100", "A.b_c-d", "9", "a" * 64, "v1.2.3", "a..b"])
def test_ordinary_names_are_slugs(name: str) -> None:
    assert slug_problem("task", name) is None


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".tmp", "-a", "_a", "a/b", "a\\b", "a\n", "\na", "a\0", "a b", "é", "a" * 65],
)
def test_names_that_could_lead_elsewhere_are_not_slugs(name: str) -> None:
    assert slug_problem("task", name) is not None
    assert slug_problem("version", name) is not None


def test_manifests_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_manifest().task = "other"  # type: ignore[misc]


def test_settings_must_be_json() -> None:
    training = make_draft().training.model_dump()
    for bad in ({"a": math.nan}, {"a": (1, 2)}, {"a": object()}, {"a": "\ud800"}):
        with pytest.raises(ValidationError, match="settings"):
            type(make_draft().training)(**{**training, "settings": bad})


def test_times_sort_as_text() -> None:
    first, second = utc_now(), utc_now()
    assert first <= second
    make_manifest(created=first)


def test_the_store_and_all_below_it_need_no_torch() -> None:
    code = """
import sys
for name in ("torch", "timm", "torchvision"):
    sys.modules[name] = None
import pathlib, tempfile
sys.path.insert(0, sys.argv[1])
from factories import make_draft, make_store
with tempfile.TemporaryDirectory() as folder:
    store = make_store(pathlib.Path(folder), {"pets": 1})
    assert store.get("pets").tensors()["head.bias"].shape == (4,)
    assert store.verify() == []
"""
    tests = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code, tests], check=True)
