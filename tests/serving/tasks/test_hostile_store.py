"""Files that were made to hurt whoever reads a store: refused, and what served before serves on."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.serving.errors import LoadError, UnavailableError, UnknownTaskError
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.store.artifact import ADAPTER, MANIFEST, Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import OpenEngine, add_marked_task

Images = NDArray[np.float32]
Hurt = Callable[[Path], None]

HEADERS: dict[str, bytes] = {
    "longer than anything": struct.pack("<Q", 2**63) + b"{}",
    "longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"}{}{",
    "nested": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    "not UTF-8": struct.pack("<Q", 4) + b'{"\xff"',
    "short": b"\0\0\0",
    "nothing": b"",
}


def of_entry(**changed: object) -> bytes:
    """A file of one tensor of four floats, described otherwise than it is."""
    entry: dict[str, object] = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"head.bias": entry | changed}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 16


HEADERS |= {
    "beyond the end": of_entry(data_offsets=[0, 1 << 40]),
    "backwards": of_entry(data_offsets=[16, 0]),
    "negative": of_entry(shape=[-4]),
    "of a huge shape": of_entry(shape=[2**62, 2**62]),
    "of an unknown type": of_entry(dtype="F31"),
    "of offsets in text": of_entry(data_offsets=["0", "16"]),
    "a name twice": of_entry().replace(b"{", b'{"head.bias":0,', 1),
}

MANIFESTS: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "not UTF-8": b'{"task": "\xff\xfe"}',
    "a number of many digits": b'{"format_version": ' + b"9" * 100_000 + b"}",
    "no number": b'{"format_version": NaN}',
    "binary": bytes(range(256)) * 100,
}

CHANGES: dict[str, tuple[tuple[str, ...], object]] = {
    "a backbone outside": (("backbone", "fingerprint"), "../../../etc"),
    "a backbone of no name": (("backbone", "name"), "x" * 1_000_000),
    "a task outside": (("task",), "../t0"),
    "a version outside": (("version",), "../../v1"),
    "a huge image": (("backbone", "input_size"), [3, 2**40, 2**40]),
    "labels that are none": (("labels",), {"0": "cat"}),
    "a label of megabytes": (("labels",), ["x" * 4_000_000] * 8),
    "endless pixels": (("preprocessing", "mean"), [1e400, 0, 0]),
    "a negative size": (("adapter", "size_bytes"), -1),
    "a size of everything": (("adapter", "size_bytes"), 2**70),
    "a digest that is none": (("adapter", "sha256"), "z" * 64),
    "layers that are none": (("layers",), []),
    "model arguments that run code": (("backbone", "model_args"), {"__reduce__": "os.system"}),
}


def written(name: str, data: bytes) -> Hurt:
    """The file holds this, and where it is the delta the manifest says so too."""

    def hurt(folder: Path) -> None:
        (folder / name).write_bytes(data)
        if name == ADAPTER:
            path = folder / MANIFEST
            record = json.loads(path.read_text("utf-8"))
            record["adapter"] |= {
                "size_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            path.write_text(json.dumps(record), "utf-8")

    return hurt


def changed(keys: tuple[str, ...], value: object) -> Hurt:
    """The manifest says something else."""

    def hurt(folder: Path) -> None:
        path = folder / MANIFEST
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        at = record
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        path.write_text(json.dumps(record), "utf-8")

    return hurt


def placed(name: str, make: Callable[[Path], object]) -> Hurt:
    """Something that is no file lies in the file's place."""

    def hurt(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return hurt


def not_finite(folder: Path) -> None:
    """A weight is NaN, and the manifest was made to agree."""
    data = bytearray((folder / ADAPTER).read_bytes())
    data[-4:] = np.array([np.nan], "<f4").tobytes()
    written(ADAPTER, bytes(data))(folder)


PLACED: dict[str, Callable[[Path], object]] = {
    "a link out of the store": lambda path: path.symlink_to("/etc/passwd"),
    "a link to what never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
}

HURTS: dict[str, Hurt] = {
    **{f"delta: {name}": written(ADAPTER, data) for name, data in HEADERS.items()},
    **{f"manifest: {name}": written(MANIFEST, data) for name, data in MANIFESTS.items()},
    **{f"manifest: {name}": changed(*change) for name, change in CHANGES.items()},
    **{f"delta: {name}": placed(ADAPTER, make) for name, make in PLACED.items()},
    **{f"manifest: {name}": placed(MANIFEST, make) for name, make in PLACED.items()},
    "delta: not finite": not_finite,
}


def make_current(artifact: Artifact) -> None:
    """As somebody would who writes to the store by hand: the store itself refuses some of it."""
    (artifact.path.parent / "current").write_text(f"{artifact.version}\n")


def answer(engine: StoreEngine, images: Images) -> tuple[str, set[int]]:
    found = engine.submit(InferRequest(task="t0", images=images)).result()
    return found.version, set(found.logits.argmax(1).tolist())


@pytest.mark.parametrize("kind", HURTS)
def test_a_hostile_version_is_refused_and_the_one_before_answers_on(
    kind: str, own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked)
    before = answer(engine, images)
    colours = own_marked.get("colours")
    hostile = add_marked_task(own_marked, colours, "t0", mark=6, seed=6, make_current=False)
    HURTS[kind](hostile.path)
    make_current(hostile)
    engine._live.poll()
    with pytest.raises(LoadError) as refused:
        engine.load("t0")
    assert str(own_marked.root) not in str(refused.value)
    assert len(str(refused.value)) < 2000
    assert answer(engine, images) == before == ("v1", {0})
    assert all(len(each.reason) < 2000 for each in engine.versions("t0"))


@pytest.mark.parametrize("is_current", [False, True])
@pytest.mark.parametrize("kind", HURTS)
def test_a_server_starts_on_a_store_that_holds_a_hostile_version(
    kind: str,
    is_current: bool,
    own_marked: ArtifactStore,
    open_engine: OpenEngine,
    images: Images,
) -> None:
    colours = own_marked.get("colours")
    hostile = add_marked_task(own_marked, colours, "t0", mark=6, seed=6, make_current=False)
    HURTS[kind](hostile.path)
    if is_current:
        make_current(hostile)
    engine = open_engine(own_marked)
    if is_current:
        with pytest.raises((UnavailableError, UnknownTaskError)):
            answer(engine, images)
    version = "v1" if is_current else None
    found = engine.submit(InferRequest(task="t0", version=version, images=images)).result()
    assert (found.version, set(found.logits.argmax(1))) == ("v1", {0})
    other = engine.submit(InferRequest(task="t1", images=images)).result()
    assert set(other.logits.argmax(1)) == {1}
