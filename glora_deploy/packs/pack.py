"""Tasks of a store into one file, to share them; exports stay behind, they can be built again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArtifactError, GloraDeployError, NotInStoreError, StoreError
from ..record_file import read_bytes
from ..store.artifact import ADAPTER, MANIFEST, Artifact
from ..store.atomic_files import whole_file
from ..store.audit import backbone_option
from ..store.backbone_config import require_intact_config
from ..store.companions import COMPANIONS, companion_files, read_companions
from ..store.fingerprint import fingerprint as fingerprint_of
from ..store.folder_lock import OpenFolder
from ..store.manifest import MAX_MANIFEST_BYTES, FileRecord, Manifest
from ..store.mapped_safetensors import map_tensors
from ..store.reader import BACKBONE_CONFIG, BACKBONE_WEIGHTS, BACKBONES, CURRENT
from ..store.redact import names_place, redacted
from ..store.store import ArtifactStore
from .pack_file import (
    OnBytes,
    PackedBackbone,
    PackedTask,
    PackedVersion,
    PackIndex,
    lowest_version,
    write_pack,
)


def pack(
    store: ArtifactStore,
    wanted: Sequence[tuple[str, str | None]],
    path: Path,
    *,
    with_backbones: bool = True,
    replace: bool = False,
    on_size: OnBytes = lambda _: None,
    on_bytes: OnBytes = lambda _: None,
) -> PackIndex:
    """Write tasks into one file that appears when it is complete; nothing in the store changes.

    Everything is read and verified first. The same versions always give the same bytes. A pack is
    to be shared, so its manifests say what kind of data a task was trained on and not where it lay.

    Args:
        store: Where they are.
        wanted: Each a task and a version of it, or None for all its versions.
        path: The file; its folder exists.
        with_backbones: Whether to put in the backbones that they need.
        replace: Whether a file that exists is replaced.
        on_size: Told the number of bytes to write before the first of them; and again where a
            version was removed, so that writing starts anew.
        on_bytes: Told of each further number of bytes written.

    Returns:
        What is in it.

    Raises:
        NotInStoreError: If a task or version is not here, or is removed meanwhile; of a task that
            is asked for as a whole, what is left of it is packed.
        StoreError: If the file exists, or a backbone is missing.
        GloraDeployError: If a file of the store is not what it must be.
        OSError: If the file cannot be written.
    """
    if not replace and os.path.lexists(path):
        raise StoreError(f"{path}: must be a new file, it exists. Give another name, or --force.")
    while True:
        index, sources = _contents(store, wanted, with_backbones=with_backbones)
        on_size(index.data_bytes())
        try:
            with whole_file(path) as file:
                write_pack(file, index, sources, on_bytes)
        except (GloraDeployError, OSError):
            if not _lost(store, wanted, index):
                raise
        else:
            return index


def _contents(
    store: ArtifactStore, wanted: Sequence[tuple[str, str | None]], *, with_backbones: bool
) -> tuple[PackIndex, dict[str, Path | bytes]]:
    """What to pack, read and verified, and where each member's bytes are."""
    tasks: dict[str, PackedTask] = {}
    sources: dict[str, Path | bytes] = {}
    manifests: dict[str, Manifest] = {}
    for task, names in _versions(store, wanted).items():
        current = store.current(task)
        versions = {}
        for name in names:
            try:
                data, manifest, beside = read_shared(store, task, name)
            except NotInStoreError:
                if (task, name) in wanted:
                    raise
                continue  # removed since it was listed: the rest of the task is packed
            versions[name] = PackedVersion(
                manifest=FileRecord.of_bytes(data),
                adapter=manifest.adapter,
                companions={each: FileRecord.of_bytes(found) for each, found in beside.items()},
            )
            sources |= {f"{task}/{name}/{each}": found for each, found in beside.items()}
            sources[f"{task}/{name}/{MANIFEST}"] = data
            sources[f"{task}/{name}/{ADAPTER}"] = store.root / task / name / ADAPTER
            manifests.setdefault(manifest.backbone.fingerprint, manifest)
        if not versions:
            raise NotInStoreError(f"every version of task {task!r} was removed meanwhile")
        tasks[task] = PackedTask(
            current=current if current in versions else None, versions=versions
        )
        sources[f"{task}/{CURRENT}"] = f"{current}\n".encode()
    backbones = {}
    for fingerprint, manifest in manifests.items() if with_backbones else ():
        folder = held_backbone(store, manifest)
        backbones[fingerprint] = PackedBackbone(
            config=FileRecord.of_file(folder / BACKBONE_CONFIG),
            weights=FileRecord.of_file(folder / BACKBONE_WEIGHTS),
        )
        for name in (BACKBONE_CONFIG, BACKBONE_WEIGHTS):
            sources[f"{BACKBONES}/{fingerprint}/{name}"] = folder / name
    index = PackIndex(pack_version=lowest_version(tasks), tasks=tasks, backbones=backbones)
    return index, sources


def _lost(store: ArtifactStore, wanted: Sequence[tuple[str, str | None]], index: PackIndex) -> bool:
    """Whether a version was removed since it was read that was not asked for by its name.

    Raises:
        NotInStoreError: If one was that was asked for.
    """
    lost = False
    for task, packed in index.tasks.items():
        for version in packed.versions:
            try:
                store.require_version(task, version)
            except NotInStoreError:
                if (task, version) in wanted:
                    raise
                lost = True
    return lost


def _versions(
    store: ArtifactStore, wanted: Sequence[tuple[str, str | None]]
) -> dict[str, list[str]]:
    """The versions to pack, oldest first, by task."""
    asked: dict[str, set[str]] = {}
    for task, version in wanted:
        if version is not None:
            store.require_version(task, version)
        names = store.versions(task) if version is None else [version]
        asked.setdefault(task, set()).update(names)
    return {task: sorted(names) for task, names in sorted(asked.items())}


def read_shared(
    store: ArtifactStore, task: str, version: str
) -> tuple[bytes, Manifest, dict[str, bytes]]:
    """A manifest as others may see it, once the delta beside it is what it says.

    Returns:
        Its bytes, what they say, and the other files beside the delta.

    Raises:
        NotInStoreError: If it is not here.
        GloraDeployError: If a file of it is not what it must be.
    """
    while True:
        store.require_version(task, version)
        try:
            folder = OpenFolder(store.root / task / version)
        except FileNotFoundError:
            continue
        with folder:
            try:
                artifact = store.get(task, version)
                artifact.tensors()
                shared = _shared(artifact)
                data = (
                    read_bytes(artifact.path / MANIFEST, MAX_MANIFEST_BYTES)
                    if shared == artifact.manifest
                    else shared.to_json()
                )
                beside = _beside(artifact)
            except (GloraDeployError, OSError):
                if folder.in_place():
                    raise
                continue
            if folder.in_place():
                return data, shared, beside


def _beside(artifact: Artifact) -> dict[str, bytes]:
    """What lies beside a delta as others may see it; left out where it names a place."""
    found = read_companions(artifact.path, artifact.manifest.adapter)
    shared = {name: COMPANIONS[name].shared(data) for name, data in found.items()}
    return companion_files(
        artifact.manifest.adapter,
        {n: data for n, data in shared.items() if not names_place(artifact.manifest, data)},
    )


def _shared(artifact: Artifact) -> Manifest:
    """The manifest without places on this machine, as far as the adapter's digest allows."""
    shared = redacted(artifact.manifest)
    if shared.digest() == artifact.manifest.digest() or not artifact.is_bound():
        return shared
    # Of all that is redacted the digest leaves out the place of the data alone.
    training = artifact.manifest.training.model_copy(update={"data": shared.training.data})
    return artifact.manifest.model_copy(update={"training": training})


def held_backbone(store: ArtifactStore, manifest: Manifest) -> Path:
    """The folder of a version's backbone, its tensors checked, kept from being pruned.

    Raises:
        StoreError: If the store does not keep it.
        ArtifactError: If it is damaged.
    """
    recorded = manifest.backbone
    if not store.hold_backbone(recorded.fingerprint):
        raise StoreError(
            f"{manifest.task}/{manifest.version}: its backbone {recorded.source} "
            f"({recorded.fingerprint[:12]}..) is not in {store.root}. Pack with --no-backbone, or "
            f"export the task once with {backbone_option(recorded.source)}."
        )
    folder = store.backbone_path(recorded.fingerprint)
    found = fingerprint_of(map_tensors(folder / BACKBONE_WEIGHTS))
    if found != recorded.fingerprint:
        raise ArtifactError(
            f"{folder}: its tensors have fingerprint {found[:12]}... Restore the file."
        )
    require_intact_config(folder)
    return folder
