"""A version of a store to an origin: its objects first, then one conditional write of the index."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import OriginError, StoreError
from ..packs.pack import held_backbone, read_shared
from ..packs.pack_file import PackedBackbone
from ..parity import PARITY_FILE
from ..precision import PRECISIONS
from ..store.artifact import ADAPTER, MANIFEST
from ..store.export_record import MODEL_FILE, ExportRecord
from ..store.manifest import FileRecord, Manifest
from ..store.reader import BACKBONE_CONFIG, BACKBONE_WEIGHTS, EXPORT_RECORD, EXPORTS
from ..store.store import ArtifactStore
from .bucket import Bucket, MissingObjectError, Object
from .index import EMPTY, INDEX, MAX_INDEX_BYTES, OriginIndex, PublishedVersion, backbone_objects

_TRIES = 50
"""Each lost one means that another writer has published."""
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing has changed."""

    task: str
    version: str
    is_new: bool
    """False if it was published before."""
    was_current: bool
    """Whether it answered before."""
    uploaded_bytes: int
    """Of its objects; those that were there are not written again."""


def publish(
    store: ArtifactStore,
    bucket: Bucket,
    task: str,
    version: str | None = None,
    *,
    on_upload: Callable[[int], None] = lambda _: None,
) -> Published:
    """Make a version visible at an origin, and the one that answers there.

    Nothing is visible before the last step, which is one write; whatever interrupts the rest, it
    can be repeated. A version that is published already becomes current again: a rollback.

    Args:
        store: Where the version is.
        bucket: The origin.
        task: The task.
        version: Of the task; the store's current one by default.
        on_upload: Told of the bytes of each object, once it is there.

    Raises:
        NotInStoreError: If the version is not here.
        StoreError: If it has no proven ONNX graph, the store lacks its backbone, or the origin has
            another version of that name.
        ArtifactError: If a file of it, or the index, is not what it must be.
        OriginError: If the origin refuses, or cannot be reached.
    """
    name = store.require_current(task) if version is None else version
    data, manifest, _ = read_shared(store, task, name)
    sources = _graphs(store, task, name, manifest)
    sources |= {MANIFEST: data, ADAPTER: store.root / task / name / ADAPTER}
    files = {each: _record(source) for each, source in sources.items()}
    entry = PublishedVersion(backbone=manifest.backbone.fingerprint, files=files)
    folder = held_backbone(store, manifest)
    backbone = PackedBackbone(
        config=FileRecord.of_file(folder / BACKBONE_CONFIG),
        weights=FileRecord.of_file(folder / BACKBONE_WEIGHTS),
    )

    index, _ = read_index(bucket)
    planned, before = index.with_current(task, name, entry, backbone), index.tasks.get(task)
    stated = planned.tasks[task].versions[name]
    uploaded = 0
    for each, (where, record) in backbone_objects(
        entry.backbone, planned.backbones[entry.backbone]
    ).items():
        if record == _record(folder / each) and bucket.upload(where, folder / each, record):
            uploaded += record.size_bytes
            on_upload(record.size_bytes)
    for each, where in stated.objects(task, name).items():
        record = stated.files[each]
        # What an earlier publication states of an export may differ from the one that is here now.
        if files.get(each) == record and bucket.upload(where, sources[each], record):
            uploaded += record.size_bytes
            on_upload(record.size_bytes)

    for _ in range(_TRIES):
        index, known = read_index(bucket)
        new = index.with_current(task, name, entry, backbone)
        if new == index or bucket.write(INDEX, new.to_json(), instead_of=known):
            return Published(
                task=task,
                version=name,
                is_new=before is None or name not in before.versions,
                was_current=before is not None and before.current == name,
                uploaded_bytes=uploaded,
            )
        time.sleep(random.uniform(0, _PAUSE_S))
    raise OriginError(
        f"{bucket.url}: {task}/{name} must be entered in {INDEX}, {_TRIES} other writers were "
        "quicker. Publish it again: what is there is not written anew."
    )


def read_index(bucket: Bucket) -> tuple[OriginIndex, Object | None]:
    """What is published, and the object that says so; None where nothing was published yet.

    Raises:
        ArtifactError: If the index is not what it must be.
        OriginError: If the origin refuses, or cannot be reached.
    """
    try:
        known = bucket.read(INDEX, MAX_INDEX_BYTES)
    except MissingObjectError:
        return EMPTY, None
    if known is None:
        raise OriginError(f"{bucket.url}/{INDEX}: nothing was known of it, and it is unchanged")
    return OriginIndex.from_json(known.data, f"{bucket.url}/{INDEX}"), known


def _graphs(
    store: ArtifactStore, task: str, version: str, manifest: Manifest
) -> dict[str, Path | bytes]:
    """The graph of each export that passed its parity check, and the record that says so.

    Raises:
        StoreError: If there is none.
        ArtifactError: If a file is altered.
    """
    found: dict[str, Path | bytes] = {}
    artifact = store.get(task, version)
    for precision in PRECISIONS:
        folder = store.export_dir(artifact, precision)
        record = ExportRecord.usable_of(folder, manifest, precision, "onnx")
        if record is None:
            continue
        kept = record.of_copies({name: name for name in (MODEL_FILE, PARITY_FILE)})
        for name in kept.files:
            record.require_intact(folder, name)
            found[f"{EXPORTS}/{precision}/{name}"] = folder / name
        found[f"{EXPORTS}/{precision}/{EXPORT_RECORD}"] = kept.to_json()
    if not found:
        raise StoreError(
            f"{task}/{version}: must have an export with an ONNX model that passed its parity "
            f"check, from which servers take its graph; it has none. Run: glora export --task "
            f"{task} --version {version} --fmt onnx --store {store.root}"
        )
    return found


def _record(source: Path | bytes) -> FileRecord:
    return FileRecord.of_bytes(source) if isinstance(source, bytes) else FileRecord.of_file(source)
