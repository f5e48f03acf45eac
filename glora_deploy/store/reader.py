"""The reading half of the artifact store: what lies where, and how it is named.

::

    <root>/<task>/<version>/manifest.json, adapter.safetensors    one artifact, never changed
    <root>/<task>/<version>/run.toml, ...                         beside it: companions.py
    <root>/<task>/<version>/exports/<precision>/                  derived, can be rebuilt
    <root>/<task>/current                                         the version that answers
    <root>/.backbones/<fingerprint>/model.safetensors, config.json
    <root>/.skeletons/                                            caches of exports
    <root>/.runs/                                                 trainings under way
    <root>/.tmp/                                                  what is being written

Nothing in a store is a symbolic link, so no name in it resolves outside (docs/format.md).

Other processes may write while this one reads. A task or version that they remove is not there,
whatever had been read of it; one that looks wrong is looked at again while no writer is half way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from ..errors import ArtifactError, NotInStoreError, StoreError
from .artifact import ADAPTER, MANIFEST, Artifact, read_artifact
from .companions import read_companion
from .comparisons import CHECKPOINT, COMPARISONS, read_comparison
from .folder_lock import folder_lock, read_in_place
from .manifest_fields import slug_problem, utc_text

CURRENT = "current"
EXPORTS = "exports"
EXPORT_RECORD = "export.json"
BACKBONES = ".backbones"
BACKBONE_WEIGHTS = "model.safetensors"
BACKBONE_CONFIG = "config.json"
SKELETONS = ".skeletons"

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class StoreReader:
    """A folder of artifacts by task and version. Cheap to make; every call looks at the disk."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def tasks(self) -> list[str]:
        """Every task that has at least one version, by name."""
        return [task for task in self._folders(self.root, "task") if self.version_names(task)]

    def version_names(self, task: str) -> list[str]:
        """The names alone, in order of the text; empty if there is no such task."""
        folder = self.root / task
        try:
            names = self._folders(folder, "version")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in names if os.path.lexists(folder / name / MANIFEST)]

    def versions(self, task: str) -> list[str]:
        """Every version of a task, oldest first; one with a damaged manifest by its file's time.

        Raises:
            NotInStoreError: If there is no such task.
        """
        self.require_task(task)
        created = self._created(task)
        if not created:  # the task was removed between the two steps
            raise self._no_task(task)
        return sorted(created, key=lambda version: (created[version], _natural(version)))

    def current(self, task: str) -> str | None:
        """The version that answers for a task; None if none was made current.

        Raises:
            NotInStoreError: If there is no such task.
            StoreError: If ``current`` does not hold a version's name.
        """
        self.require_task(task)
        path = self.inside(self.root / task / CURRENT)
        try:
            text = path.read_text("utf-8").removesuffix("\n")
        except (FileNotFoundError, NotADirectoryError):
            self.require_task(task)  # it may have been removed between the two steps
            return None
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise StoreError(f"{path}: must be a file that names a version ({error})") from error
        if problem := slug_problem("version", text):
            raise StoreError(f"{path}: the version {problem}. Make a version current again.")
        return text

    def get(self, task: str, version: str | None = None) -> Artifact:
        """One version of a task, the current one by default; its manifest is read and checked.

        Raises:
            NotInStoreError: If the task or version is not here; lists those that are.
            StoreError: If none is asked for and none is current.
            ArtifactError: If the manifest is damaged or belongs elsewhere.
        """
        while True:
            name = self.require_current(task) if version is None else version
            self.require_version(task, name)
            read = partial(self._read, task, name)
            if artifact := read_in_place(self.root / task / name, read):
                return artifact

    def companion(self, artifact: Artifact, name: str) -> bytes | None:
        """A file that lies beside a version; None if it has none by this name.

        Args:
            artifact: The version.
            name: One of ``COMPANIONS``.

        Raises:
            ArtifactError: If it is not what companions.json states.
            StoreError: If it is a link.
        """
        read = partial(read_companion, artifact.path, artifact.manifest.adapter, name)
        return read_in_place(artifact.path, read)

    def export_dir(self, artifact: Artifact, precision: str) -> Path:
        """Where the exports of an artifact in one precision lie, or would lie.

        Raises:
            StoreError: If the precision is not a slug, or a link is in the way.
        """
        require_slug("precision", precision)
        return self.inside(self.root / artifact.task / artifact.version / EXPORTS / precision)

    def backbone_path(self, fingerprint: str) -> Path:
        """The folder with model.safetensors and config.json of a backbone.

        Raises:
            StoreError: If the store does not keep this backbone, or a link is in the way.
        """
        folder = self._backbone_folder(fingerprint)
        if not folder.is_dir():
            raise StoreError(
                f"{self.root}: does not keep the backbone with fingerprint {fingerprint[:12]}... "
                "Give its name or its weights."
            )
        for name in (BACKBONE_WEIGHTS, BACKBONE_CONFIG):
            self.inside(folder / name)
        return folder

    @property
    def backbones(self) -> Path:
        """The folder of the backbones; missing in a store without any."""
        return self.inside(self.root / BACKBONES)

    def backbone_names(self) -> list[str]:
        """The fingerprint of every backbone that is kept, in order of the text."""
        try:
            with os.scandir(self.backbones) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and _FINGERPRINT.fullmatch(entry.name)
                )
        except FileNotFoundError:
            return []

    def keeps_backbone(self, fingerprint: str) -> bool:
        """Whether the store has the folder of a backbone."""
        return self._backbone_folder(fingerprint).is_dir()

    def require_task(self, task: str) -> None:
        """Check that a task is here.

        Raises:
            NotInStoreError: If it is not; lists the tasks that are.
        """
        require_slug("task", task)
        folder = self.inside(self.root / task)
        if folder.is_file():
            raise StoreError(f"{folder}: a task must be a folder, got a file. Move it away.")
        if not self.version_names(task):
            raise self._no_task(task)

    def require_current(self, task: str) -> str:
        """The name of the current version, which is here.

        Raises:
            NotInStoreError: If there is no such task.
            StoreError: If no version of it is current.
        """
        version = self.current(task)
        if version is not None and version in self.version_names(task):
            return version
        with self.steady():  # another may have become current, and this one been removed
            version = self.current(task)
            if version is not None and version in self.version_names(task):
                return version
            raise self.none_current(task, version)

    def require_version(self, task: str, version: str) -> None:
        """Check that a version of a task is here.

        Raises:
            NotInStoreError: If it is not; lists the versions that are.
        """
        named = slug_problem("task", task) is None and slug_problem("version", version) is None
        if named and version not in self.version_names(task):
            self._refuse_comparison(task, version)
        self.require_task(task)
        require_slug("version", version)
        self.inside(self.root / task / version)
        if version not in self.version_names(task):
            raise NotInStoreError(
                f"no version {version!r} of task {task!r} in {self.root}; versions here: "
                f"{self._listed(task)}"
            )

    def _refuse_comparison(self, task: str, name: str) -> None:
        if known := read_comparison(self.root, task, name):
            rest = "so nothing of it can be merged into a vanilla network"
            if known.checkpoint is not None:
                place = self.root / COMPARISONS / task / f"{name}{CHECKPOINT}"
                rest = f"and stands in {place}, of which glora extract makes a delta"
            raise NotInStoreError(
                f"{task}/{name}: was trained by {known.method} for comparison alone, and has no "
                f"delta: {known.why}, {rest}"
            )

    def none_current(self, task: str, stated: str | None) -> StoreError:
        """The refusal of a task whose ``current`` is missing or names no version that is here.

        Args:
            task: The task.
            stated: What ``current`` says.
        """
        what = f"names {stated}" if stated else "is missing, so no version is current"
        return StoreError(
            f"{self.root / task / CURRENT}: {what}; versions here: {self._listed(task)}. "
            "Name a version, or make one current."
        )

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Inside the block no writer is between two steps: what looks wrong is wrong.

        Writers wait for its end, so list names in it and read no large file. Never nest two.
        """
        with folder_lock(self.root, shared=True):
            yield

    def inside(self, path: Path) -> Path:
        """The path itself, once no link lies on it between the root and its end.

        Raises:
            StoreError: If there is one.
        """
        step = self.root
        for part in path.relative_to(self.root).parts:
            step = step / part
            if step.is_symlink():
                raise StoreError(
                    f"{step}: must not be a link, got one to {step.readlink()}. Remove it."
                )
        return path

    def _folders(self, folder: Path, kind: Literal["task", "version"]) -> list[str]:
        """Sub-folders that could be tasks or versions, by name."""
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not slug_problem(kind, entry.name)
            )

    def _created(self, task: str) -> dict[str, str]:
        """Each version's time of creation; its file's time if the manifest is damaged."""
        created = {}
        for version in self.version_names(task):
            folder = self.root / task / version
            try:
                if artifact := read_in_place(folder, partial(self._read, task, version)):
                    created[version] = artifact.manifest.created
            except (StoreError, ArtifactError):
                try:
                    seconds = (folder / MANIFEST).lstat().st_mtime
                except FileNotFoundError:  # removed meanwhile
                    continue
                created[version] = utc_text(datetime.fromtimestamp(seconds, UTC))
        return created

    def _no_task(self, task: str) -> NotInStoreError:
        tasks = ", ".join(self.tasks()) or "none"
        return NotInStoreError(f"no task {task!r} in {self.root}; tasks here: {tasks}")

    def _listed(self, task: str) -> str:
        return ", ".join(self.versions(task)) or "none"

    def _read(self, task: str, version: str) -> Artifact:
        folder = self.root / task / version
        for name in (MANIFEST, ADAPTER):
            self.inside(folder / name)
        artifact = read_artifact(folder)
        if (artifact.task, artifact.version) != (task, version):
            raise ArtifactError(
                f"{folder / MANIFEST}: names {artifact.task}/{artifact.version}, the folder is "
                f"{task}/{version}. Restore the folder."
            )
        return artifact

    def _backbone_folder(self, fingerprint: str) -> Path:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"a fingerprint must be 64 hex digits, got {fingerprint!r}")
        return self.inside(self.root / BACKBONES / fingerprint)


def require_slug(kind: Literal["task", "version", "precision"], name: str) -> None:
    """Check that a text can name a task, version or precision.

    Raises:
        StoreError: If it cannot; states the rule.
    """
    if problem := slug_problem(kind, name):
        raise StoreError(f"{kind} {problem}")


def _natural(version: str) -> tuple[tuple[int, str], ...]:
    """Orders v9 before v10."""
    return tuple(
        (int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", version)
    )
