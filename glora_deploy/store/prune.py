"""What a store keeps and no version in it needs any more: backbones, and graphs that were cached.

Safe while others write. Whoever stores a version holds its backbone from before the version is
there (``ArtifactStore.hold_backbone``), so a backbone is removed only once it is locked against
that *and* every version, listed after the lock, uses another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from ..errors import ArtifactError, NotInStoreError, StoreError
from .atomic_files import sweep
from .folder_lock import OpenFolder
from .graph_key import skeleton_key_of
from .manifest import Manifest
from .reader import SKELETONS
from .store import ArtifactStore


@dataclass(frozen=True, slots=True)
class Unused:
    """A backbone or a cached graph that no version uses."""

    path: Path
    """Its folder, or its file."""
    size_bytes: int
    """What it takes on disk."""
    in_use: bool = False
    """Whether it stays, because another process is about to use it or it cannot be locked."""


def prune(store: ArtifactStore, *, dry_run: bool = False) -> list[Unused]:
    """Remove the backbones that no version uses, and the cached graphs that no export would read.

    A graph is stale if no version has its architecture and number of classes, or other library
    versions made it; where these libraries are not installed, graphs are left alone. Backbones
    that this same object holds are let go of first.

    Args:
        store: Where.
        dry_run: Remove nothing.

    Returns:
        What was removed, or would be, and what stays because another process holds it.

    Raises:
        StoreError: If a manifest cannot be read, so that nobody knows what it needs; nothing is
            removed then.
    """
    store.release_backbones()
    found = _remove_unused(store, _unused_names(store), dry_run=dry_run)
    if not dry_run:
        sweep(store.inside(store.root / SKELETONS / "scratch"))
    for path in _stale_skeletons(store):
        with suppress(FileNotFoundError):
            found.append(_measured(path))
            if not dry_run:
                path.unlink()
    return found


def remove_if_unused(store: ArtifactStore, fingerprints: Collection[str]) -> None:
    """Remove those of these backbones that no version uses, and nobody is about to.

    Raises:
        StoreError: As ``prune``.
    """
    store.release_backbones()
    _remove_unused(store, fingerprints, dry_run=False)


def _remove_unused(
    store: ArtifactStore, fingerprints: Collection[str], *, dry_run: bool
) -> list[Unused]:
    found = []
    with ExitStack() as locked:
        free = set()
        for name in fingerprints:
            try:
                folder = locked.enter_context(OpenFolder(store.backbones / name))
            except FileNotFoundError:  # another prune was quicker
                continue
            if folder.lock(wait=False):
                free.add(name)
            else:
                found.append(_measured(folder.path, in_use=True))
        # Nobody can store a version now that begins to use one of these.
        for name in sorted(free.intersection(_unused_names(store))):
            found.append(_measured(store.backbones / name))
            if not dry_run:
                store.remove_backbone(name)
    return found


def _unused_names(store: ArtifactStore) -> list[str]:
    used = {manifest.backbone.fingerprint for manifest in _manifests(store)}
    return [name for name in store.backbone_names() if name not in used]


def _manifests(store: ArtifactStore) -> Iterator[Manifest]:
    for task in store.tasks():
        with suppress(NotInStoreError):
            for version in store.versions(task):
                with suppress(NotInStoreError):
                    try:
                        yield store.get(task, version).manifest
                    except ArtifactError as error:
                        raise StoreError(
                            f"{error} Nothing is pruned as long as what {task}/{version} needs is "
                            "not known: restore or remove it."
                        ) from error


def _stale_skeletons(store: ArtifactStore) -> list[Path]:
    folder = store.inside(store.root / SKELETONS)
    try:
        live = {skeleton_key_of(manifest) for manifest in _manifests(store)}
    except PackageNotFoundError:
        return []
    return sorted(path for path in folder.glob("*.onnx") if path.stem not in live)


def _measured(path: Path, *, in_use: bool = False) -> Unused:
    files = [path] if path.is_file() else path.rglob("*")
    sizes = []
    for file in files:
        with suppress(FileNotFoundError):
            sizes.append(file.lstat().st_size if not file.is_dir() else 0)
    return Unused(path, sum(sizes), in_use)
