"""Tasks into one file and out of it again: byte for byte, all or nothing, and nothing else."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from factories import make_draft, make_tensors
from glora_deploy.errors import ArtifactError, GloraDeployError, NotInStoreError, StoreError
from glora_deploy.packs import pack_file, unpack as unpack_module
from glora_deploy.packs.pack import pack
from glora_deploy.packs.pack_file import INDEX, PackIndex
from glora_deploy.packs.unpack import Unpacked, unpack
from glora_deploy.store.artifact import ADAPTER, MANIFEST, Artifact, write_artifact
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.manifest import FileRecord
from glora_deploy.store.reader import BACKBONE_CONFIG, BACKBONE_WEIGHTS
from glora_deploy.store.store import ArtifactStore
from pets_store import refusal

BACKBONES = tuple({"w": np.full((5, 3), value, np.float32)} for value in (1, 2))
DIGESTS = tuple(map(fingerprint, BACKBONES))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def put(store: ArtifactStore, task: str, seed: int, *, backbone: int = 0, **options: Any) -> None:
    store.put_backbone(DIGESTS[backbone], BACKBONES[backbone], {"name": "toy"})
    draft = make_draft()
    recorded = draft.backbone.model_copy(update={"fingerprint": DIGESTS[backbone]})
    draft = draft.model_copy(update={"backbone": recorded})
    store.put(task, make_tensors(draft, seed=seed), draft, **options)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Two tasks on two backbones; the older version of the first is current, and exported."""
    store = ArtifactStore.create(tmp_path / "store")
    put(store, "pets", 1)
    put(store, "pets", 2, make_current=False)
    put(store, "cats", 3, backbone=1)
    with store.replace_export(store.get("pets"), "fp32") as folder:
        manifest = store.get("pets").manifest
        ExportRecord.of_folder(folder, manifest, "fp32", usable=False).write(folder)
    return store


@pytest.fixture
def packed(store: ArtifactStore, tmp_path: Path) -> Path:
    pack(store, [("pets", None), ("cats", None)], tmp_path / "all.tar")
    return tmp_path / "all.tar"


def content(root: Path) -> dict[str, bytes | None]:
    """Every file below a folder, and every folder, but for .tmp."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if path.name != ".tmp"
    }


def without_exports(files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    return {name: data for name, data in files.items() if "exports" not in name}


# Into the file


def test_a_pack_holds_the_store_file_by_file_without_its_exports(
    store: ArtifactStore, packed: Path
) -> None:
    members = [
        "cats/v1/manifest.json",
        "cats/v1/adapter.safetensors",
        "cats/current",
        "pets/v1/manifest.json",
        "pets/v1/adapter.safetensors",
        "pets/v2/manifest.json",
        "pets/v2/adapter.safetensors",
        "pets/current",
        *(
            f".backbones/{digest}/{name}"
            for digest in sorted(DIGESTS)
            for name in (BACKBONE_CONFIG, BACKBONE_WEIGHTS)
        ),
    ]
    with tarfile.open(packed) as tar:
        assert tar.getnames() == [INDEX, *members]
        for member in tar:
            assert member.isfile()
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            file = tar.extractfile(member)
            assert file is not None
            if member.name != INDEX:
                assert file.read() == (store.root / member.name).read_bytes()


def test_a_pack_unpacked_by_any_tar_is_a_store(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path / "by hand", filter="data")
    found = ArtifactStore.open(tmp_path / "by hand")
    assert found.verify() == []
    assert found.without_backbone() == []
    assert (found.current("pets"), found.versions("pets")) == ("v1", ["v1", "v2"])


def test_the_same_versions_always_give_the_same_bytes(
    store: ArtifactStore, packed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.tar"
    for path in store.root.rglob("*"):
        os.utime(path, (1, 1))
    pack(store, [("cats", "v1"), ("pets", "v2"), ("pets", None), ("cats", None)], again)
    assert again.read_bytes() == packed.read_bytes()
    unpack(ArtifactStore(tmp_path / "other"), packed)
    again.unlink()
    pack(ArtifactStore.open(tmp_path / "other"), [("pets", None), ("cats", None)], again)
    assert again.read_bytes() == packed.read_bytes()


def test_chosen_versions_without_their_backbone(store: ArtifactStore, tmp_path: Path) -> None:
    index = pack(store, [("pets", "v2")], tmp_path / "p.tar", with_backbones=False)
    assert list(index.members()) == ["pets/v2/manifest.json", "pets/v2/adapter.safetensors"]
    assert index.tasks["pets"].current is None
    other = ArtifactStore(tmp_path / "other")
    assert unpack(other, tmp_path / "p.tar") == [Unpacked("pets", "v2", is_new=True)]
    assert (other.versions("pets"), other.current("pets")) == (["v2"], None)
    (finding,) = other.without_backbone()
    assert (finding.task, finding.version) == ("pets", "v2")
    assert other.verify() == []


def test_a_file_that_exists_is_replaced_only_if_asked(store: ArtifactStore, packed: Path) -> None:
    before = packed.read_bytes()
    assert refusal(lambda: pack(store, [("pets", "v1")], packed), StoreError) == (
        f"{packed}: must be a new file, it exists. Give another name, or --force."
    )
    assert packed.read_bytes() == before
    pack(store, [("pets", "v1")], packed, replace=True)
    assert len(packed.read_bytes()) < len(before)


def test_nothing_is_left_of_a_pack_that_is_interrupted(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    before = content(store.root)
    for error in (KeyboardInterrupt, OSError):

        def stop(_: int, error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            pack(store, [("pets", None)], tmp_path / "out/p.tar", on_bytes=stop)
        assert list((tmp_path / "out").iterdir()) == []
    assert content(store.root) == before


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (f"pets/v1/{ADAPTER}", "pets/v1/adapter.safetensors: sha256 is "),
        (f"pets/v1/{MANIFEST}", "pets/v1/manifest.json: must be JSON"),
        (f".backbones/{DIGESTS[0]}/{BACKBONE_WEIGHTS}", "its tensors have fingerprint "),
    ],
)
def test_what_is_damaged_is_not_packed(
    store: ArtifactStore, tmp_path: Path, name: str, problem: str
) -> None:
    path = store.root / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    message = refusal(lambda: pack(store, [("pets", None)], tmp_path / "p.tar"), ArtifactError)
    assert problem in message
    assert not (tmp_path / "p.tar").exists()


def test_a_missing_backbone_is_named_with_the_way_out(store: ArtifactStore, tmp_path: Path) -> None:
    store.release_backbones()
    (store.root / ".backbones" / DIGESTS[0]).rename(tmp_path / "elsewhere")
    message = refusal(lambda: pack(store, [("pets", None)], tmp_path / "p.tar"), StoreError)
    assert "pets/v1: its backbone random:0 (" in message
    assert "Pack with --no-backbone, or " in message


def test_a_version_removed_while_it_is_packed_is_named(
    store: ArtifactStore, tmp_path: Path
) -> None:
    def remove(_: int) -> None:
        if "v2" in store.versions("pets"):
            store.remove("pets", "v2")

    for on in ("on_size", "on_bytes"):
        if "v2" not in store.versions("pets"):
            put(store, "pets", 2, version="v2", make_current=False)
        action = lambda on=on: pack(  # noqa: E731
            store, [("pets", None), ("pets", "v2")], tmp_path / "p.tar", **{on: remove}
        )
        assert refusal(action, NotInStoreError) == (
            f"no version 'v2' of task 'pets' in {store.root}; versions here: v1"
        )
        assert not (tmp_path / "p.tar").exists()


PLACE = "folder:/home/ann/clients/acme"


def put_from(store: ArtifactStore, task: str, **training: Any) -> Artifact:
    """A version that says more of its training."""
    store.put_backbone(DIGESTS[0], BACKBONES[0], {"name": "toy"})
    draft = make_draft()
    recorded = draft.backbone.model_copy(update={"fingerprint": DIGESTS[0]})
    said = draft.training.model_copy(update=training)
    draft = draft.model_copy(update={"backbone": recorded, "training": said})
    return store.put(task, make_tensors(draft), draft)


def unbind(artifact: Artifact) -> None:
    """Make an artifact one that an older release wrote: its adapter states no digest."""
    data = save(artifact.tensors(), {"glora_deploy": "{}"})
    (artifact.path / ADAPTER).write_bytes(data)
    manifest = artifact.manifest.model_copy(update={"adapter": FileRecord.of_bytes(data)})
    (artifact.path / MANIFEST).write_bytes(manifest.to_json())


def test_a_pack_names_no_place_of_the_data_and_its_own_store_keeps_it(tmp_path: Path) -> None:
    store, file = ArtifactStore.create(tmp_path / "store"), tmp_path / "dogs.tar"
    artifact = put_from(store, "dogs", data=PLACE)
    before = content(store.root)
    pack(store, [("dogs", None)], file)
    assert b"acme" not in file.read_bytes()
    other = ArtifactStore(tmp_path / "other")
    unpack(other, file)
    assert other.verify() == []
    found = other.get("dogs")
    assert found.manifest.training.data == "folder"
    assert found.manifest.digest() == artifact.manifest.digest()
    assert found.is_bound()
    for there in (store, other):
        assert unpack(there, file) == [Unpacked("dogs", "v1", is_new=False)]
    assert content(store.root) == before
    pack(other, [("dogs", None)], tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == file.read_bytes()


def test_a_pack_of_an_older_import_keeps_the_name_of_the_model_alone(tmp_path: Path) -> None:
    store, file = ArtifactStore.create(tmp_path / "store"), tmp_path / "dogs.tar"
    artifact = put_from(store, "dogs", data=PLACE, settings={"trained_on": "/home/ann/vit"})
    pack(store, [("dogs", None)], file)
    assert b"acme" not in file.read_bytes()
    bound = ArtifactStore(tmp_path / "bound")
    unpack(bound, file)  # the digest covers the settings, so they are as they were
    assert bound.get("dogs").manifest.training.settings == {"trained_on": "/home/ann/vit"}
    unbind(artifact)
    file.unlink()
    store.release_backbones()
    shutil.rmtree(store.backbones)  # an unbound manifest would have to agree with it
    pack(store, [("dogs", None)], file, with_backbones=False)
    assert b"ann" not in file.read_bytes()
    other = ArtifactStore(tmp_path / "other")
    unpack(other, file)
    assert other.get("dogs").manifest.training.settings == {"trained_on": "vit"}
    assert unpack(store, file) == [Unpacked("dogs", "v1", is_new=False)]


@pytest.mark.parametrize("when", ["listed", "on_size", "on_bytes"])
def test_what_is_left_of_a_task_from_which_a_version_is_removed_is_packed(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def remove(_: int = 0) -> None:
        if "v2" in store.versions("pets"):
            store.remove("pets", "v2")

    pack(store, [("pets", "v1")], tmp_path / "v1.tar")
    if when == "listed":
        names = store.versions

        def then_removed(task: str) -> list[str]:
            found = names(task)
            if "v2" in found:
                store.remove("pets", "v2")
            return found

        monkeypatch.setattr(store, "versions", then_removed)
    options: dict[str, Any] = {} if when == "listed" else {when: remove}
    index = pack(store, [("pets", None)], tmp_path / "p.tar", **options)
    assert list(index.tasks["pets"].versions) == ["v1"]
    assert (tmp_path / "p.tar").read_bytes() == (tmp_path / "v1.tar").read_bytes()


# Out of the file


def test_what_was_packed_comes_out_byte_for_byte(
    store: ArtifactStore, packed: Path, tmp_path: Path
) -> None:
    other = ArtifactStore(tmp_path / "other")
    assert unpack(other, packed) == [
        Unpacked("cats", "v1", is_new=True),
        Unpacked("pets", "v1", is_new=True),
        Unpacked("pets", "v2", is_new=True),
    ]
    assert content(other.root) == without_exports(content(store.root))
    assert list((other.root / ".tmp").iterdir()) == []
    assert other.verify() == []
    assert other.without_backbone() == []


def test_unpacking_again_changes_nothing(packed: Path, tmp_path: Path) -> None:
    other = ArtifactStore(tmp_path / "other")
    unpack(other, packed)
    before = content(other.root)
    times = {path: path.stat().st_mtime_ns for path in other.root.rglob("*/*")}
    assert [each.is_new for each in unpack(other, packed)] == [False] * 3
    assert content(other.root) == before
    now = {path: path.stat().st_mtime_ns for path in other.root.rglob("*/*")}
    assert {path for path in now if now[path] != times[path]} == set()


def test_what_is_missing_is_added_and_a_current_version_stays(
    store: ArtifactStore, packed: Path, tmp_path: Path
) -> None:
    other = ArtifactStore(tmp_path / "other")
    unpack(other, packed)
    other.set_current("pets", "v2")
    other.remove("pets", "v1")
    other.remove("cats", force=True)
    assert [each.is_new for each in unpack(other, packed)] == [True, True, False]
    assert (other.current("pets"), other.current("cats")) == ("v2", "v1")
    assert other.versions("pets") == ["v1", "v2"]
    assert other.verify() == []


def test_another_version_of_that_name_is_refused_and_nothing_appears(
    packed: Path, tmp_path: Path
) -> None:
    other = ArtifactStore.create(tmp_path / "other")
    put(other, "pets", 7, version="v2")
    before = content(other.root)
    assert refusal(lambda: unpack(other, packed), StoreError) == (
        f"{other.root}/pets/v2: is another version than the one of that name in {packed}. Give "
        "the task another name with --as, or remove that version first."
    )
    assert content(other.root) == before


def test_a_version_that_is_there_and_damaged_is_named(packed: Path, tmp_path: Path) -> None:
    other = ArtifactStore(tmp_path / "other")
    unpack(other, packed)
    (other.root / "pets/v1" / ADAPTER).write_bytes(b"")
    message = refusal(lambda: unpack(other, packed), ArtifactError)
    assert message.startswith(f"{other.root}/pets/v1/{ADAPTER}: has 0 bytes on disk, ")
    assert message.endswith(" Or remove pets/v1 and unpack again.")


def test_a_task_under_another_name_has_the_same_tensors_times_and_versions(
    store: ArtifactStore, tmp_path: Path
) -> None:
    pack(store, [("pets", None)], tmp_path / "p.tar")
    assert [each.is_new for each in unpack(store, tmp_path / "p.tar", as_task="dogs")] == [True] * 2
    assert (store.versions("dogs"), store.current("dogs")) == (["v1", "v2"], "v1")
    for version in ("v1", "v2"):
        old, new = store.get("pets", version), store.get("dogs", version)
        assert new.manifest.created == old.manifest.created
        tensors = old.tensors()
        assert all(np.array_equal(t, tensors[name]) for name, t in new.tensors().items())
    assert store.verify() == []
    again = unpack(store, tmp_path / "p.tar", as_task="dogs")
    assert again == [Unpacked("dogs", version, is_new=False) for version in ("v1", "v2")]


def test_several_tasks_cannot_all_have_one_name(packed: Path, tmp_path: Path) -> None:
    other = ArtifactStore(tmp_path / "other")
    assert refusal(lambda: unpack(other, packed, as_task="dogs"), StoreError) == (
        f"{packed}: holds 2 tasks (cats, pets). --as names one task: leave it out."
    )
    assert not other.root.exists()


def test_progress_ends_at_the_size(store: ArtifactStore, packed: Path, tmp_path: Path) -> None:
    sizes: list[int] = []
    done: list[int] = []
    unpack(ArtifactStore(tmp_path / "other"), packed, on_size=sizes.append, on_bytes=done.append)
    assert [sum(done)] == sizes
    done.clear()
    pack(store, [("pets", None)], tmp_path / "p", on_size=sizes.append, on_bytes=done.append)
    assert sum(done) == sizes[1] < sizes[0]


# What must not get in


def test_any_changed_missing_or_further_byte_is_refused(packed: Path, tmp_path: Path) -> None:
    other = ArtifactStore(tmp_path / "other")
    data = packed.read_bytes()
    changed = [
        data[:at] + bytes([data[at] ^ (1, 0x80)[at % 2]]) + data[at + 1 :]
        for at in range(0, len(data), 257)
    ]
    cut = [data[:length] for length in (0, 1, 511, 512, 600, len(data) - 1024, len(data) - 1)]
    for bad in (*changed, *cut, data + b"\0", data + data, b"\0" * 4096, b"PK\3\4" + data):
        packed.write_bytes(bad)
        assert str(packed) in refusal(lambda: unpack(other, packed), ArtifactError)
        assert not other.root.exists()


def write_forged(path: Path, index: Any, files: dict[str, bytes]) -> None:
    """A pack with a true header for whatever index and files are given."""
    data = index if isinstance(index, bytes) else index.to_json()
    parts = [pack_file._header(INDEX, len(data)), data, pack_file._padding(len(data))]
    for name, text in files.items():
        parts += [pack_file._header(name, len(text)), text, pack_file._padding(len(text))]
    path.write_bytes(b"".join([*parts, pack_file._END]))


def stored_files(packed: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with tarfile.open(packed) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return json.loads(files.pop(INDEX)), files


def forge(packed: Path, name: str, data: bytes) -> None:
    """Change a file of a pack, and everything in the index that states it."""
    raw, files = stored_files(packed)
    files[name] = data
    folder, _, file = name.rpartition("/")
    record = FileRecord.of_bytes(data).model_dump()
    if folder.startswith(".backbones/"):
        kind = "weights" if file == BACKBONE_WEIGHTS else "config"
        raw["backbones"][folder.removeprefix(".backbones/")][kind] = record
    else:
        task, version = folder.split("/")
        raw["tasks"][task]["versions"][version]["manifest" if file == MANIFEST else "adapter"] = (
            record
        )
    index = PackIndex.model_validate_json(json.dumps(raw))
    write_forged(packed, index, {name: files[name] for name in index.members()})


def manifest_of(folder: Path, task: str, seed: int) -> bytes:
    folder.mkdir()
    draft = make_draft()
    write_artifact(folder, draft, make_tensors(seed=seed), task=task, version="v1")
    return (folder / MANIFEST).read_bytes()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (f"pets/v1/{ADAPTER}", "pets/v1/adapter.safetensors: has 3 bytes on disk, "),
        (f"pets/v1/{MANIFEST}", "pets/v1/manifest.json: names dogs/v1, the folder is pets/v1. "),
        (f"cats/v1/{MANIFEST}", "cats/v1/adapter.safetensors: sha256 is "),
        (f".backbones/{DIGESTS[0]}/{BACKBONE_WEIGHTS}", "must be weights, got a text"),
    ],
)
def test_a_pack_that_agrees_with_itself_must_still_be_sound(
    packed: Path, tmp_path: Path, name: str, problem: str
) -> None:
    data = b"abc"
    if name.endswith(MANIFEST):
        data = manifest_of(tmp_path / "m", "dogs" if "pets" in name else "cats", 99)
    forge(packed, name, data)
    other = ArtifactStore(tmp_path / "other")
    message = refusal(lambda: unpack(other, packed), ArtifactError)
    assert message.startswith(f"{packed}: ")
    assert problem in message
    assert ".tmp" not in message
    assert not other.root.exists()


def test_a_backbone_that_nothing_in_the_pack_uses_is_refused(packed: Path, tmp_path: Path) -> None:
    raw, files = stored_files(packed)
    del raw["tasks"]["cats"]
    index = PackIndex.model_validate_json(json.dumps(raw))
    write_forged(packed, index, {name: files[name] for name in index.members()})
    message = refusal(lambda: unpack(ArtifactStore(tmp_path / "other"), packed), ArtifactError)
    assert message.endswith(
        f"holds the backbone {DIGESTS[1][:12]}.., which none of its versions uses"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: raw["tasks"].update({"../out": raw["tasks"]["cats"]}), "must be 1 to 64 of"),
        (lambda raw: raw["tasks"].update({"/etc": raw["tasks"]["cats"]}), "must be 1 to 64 of"),
        (lambda raw: raw["backbones"].update({"..": {}}), "backbones"),
        (lambda raw: raw["tasks"]["cats"].update(current="v7"), "current must be one of the"),
        (lambda raw: raw["tasks"]["cats"].update(current="../v1"), "must be 1 to 64 of"),
        (lambda raw: raw["tasks"]["cats"].update(versions={}), "versions"),
        (lambda raw: raw.update(tasks={}), "tasks"),
        (lambda raw: raw.update(pack_version=3), "pack_version must be 1 or 2, which this"),
        (lambda raw: raw.update(pack_version=2), "pack_version must be 1 for what it states"),
        (lambda raw: raw.update(pack_version=True), "pack_version must be 1 or 2, which this"),
        (lambda raw: raw.update(more=1), "more: is not a field"),
        (
            lambda raw: raw["backbones"][DIGESTS[0]]["weights"].update(size_bytes=2**40),
            "bytes on disk, ",
        ),
        (lambda raw: raw["backbones"][DIGESTS[0]]["weights"].update(size_bytes=-1), "size_bytes"),
    ],
)
def test_an_index_that_states_something_else_is_refused(
    packed: Path, tmp_path: Path, change: Callable[[Any], Any], problem: str
) -> None:
    raw, files = stored_files(packed)
    change(raw)
    data = json.dumps(raw, indent=1, sort_keys=True).encode() + b"\n"
    write_forged(packed, data, files)
    other = ArtifactStore(tmp_path / "other")
    assert problem in refusal(lambda: unpack(other, packed), ArtifactError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tar", "store"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, b"S"])
def test_links_folders_and_sparse_members_are_refused(
    packed: Path, tmp_path: Path, kind: bytes
) -> None:
    """A tar whose index is true and one of whose members is something else."""
    raw, files = stored_files(packed)
    index = PackIndex.model_validate_json(json.dumps(raw))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in {INDEX: index.to_json(), **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == f"pets/v1/{ADAPTER}":
                member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO(data))
    good = packed.stat().st_size
    packed.write_bytes(out.getvalue()[: good - 1024] + bytes(1024))
    other = ArtifactStore(tmp_path / "other")
    refusal(lambda: unpack(other, packed), ArtifactError)
    assert not other.root.exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert refusal(lambda: unpack(ArtifactStore(tmp_path / "s"), path), ArtifactError) == (
        f"{path}: must be a file that 'glora pack' wrote"
    )


# Interrupted, and beside others


@pytest.mark.parametrize("step", ["move_in", "replace_current", "flush"])
@pytest.mark.parametrize("after", [False, True])
def test_nothing_is_left_of_an_unpacking_that_is_interrupted(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    for n_allowed in range(20):
        root = tmp_path / f"{n_allowed}"
        other = ArtifactStore.create(root)
        put(other, "pets", 5, version="mine", make_current=False)
        before = content(root)
        left = [None] * n_allowed
        real = getattr(unpack_module, step)

        def interrupted(*args: Any, left: list[None] = left, real: Any = real) -> Any:
            if after and not left:
                real(*args)
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(unpack_module, step, interrupted)
            try:
                unpack(other, packed)
            except KeyboardInterrupt:
                assert content(root) == before
                continue
        assert n_allowed > 0
        assert other.verify() == []
        return
    raise AssertionError("never ended")


def test_the_same_pack_unpacked_by_another_process_meanwhile_is_no_conflict(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ArtifactStore(tmp_path / "other")
    real, happened = unpack_module.take_in, []

    def meanwhile(*args: Any) -> Any:
        if not happened:
            happened.append(True)
            unpack(ArtifactStore(tmp_path / "other"), packed)
        return real(*args)

    monkeypatch.setattr(unpack_module, "take_in", meanwhile)
    assert [each.is_new for each in unpack(other, packed)] == [False] * 3
    assert other.verify() == []


def test_a_version_put_by_another_process_meanwhile_is_kept_and_nothing_else_appears(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ArtifactStore.create(tmp_path / "other")

    def meanwhile(new: Path) -> bool:
        if not other.tasks():
            put(ArtifactStore(other.root), "pets", 8)
        return ArtifactStore.move_in_backbone(other, new)

    monkeypatch.setattr(other, "move_in_backbone", meanwhile)
    with pytest.raises(GloraDeployError, match="is another version than"):
        unpack(other, packed)
    assert other.tasks() == ["pets"]
    assert other.versions("pets") == ["v1"]
    assert other.backbone_names() == [DIGESTS[0]]


def test_no_space_for_a_pack_leaves_the_store_as_it_was(packed: Path, tmp_path: Path) -> None:
    other = ArtifactStore.create(tmp_path / "other")
    put(other, "dogs", 4)
    before = content(other.root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        message = refusal(lambda: unpack(other, packed), StoreError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"{other.root}: no space left to write {packed.name} (")
    assert content(other.root) == before
