"""index.json of an origin: which versions there are, which answer, and what their files must be.

::

    <prefix>/index.json                                     this; the one object that changes
    <prefix>/tasks/<task>/<version>/<digest>/...            the files of a version
    <prefix>/backbones/<fingerprint>/<digest>/...           model.safetensors, config.json

``<digest>`` follows from the files below it, so an object never changes: two writers of one name
do not meet, and only the index says which of them counts (docs/origins.md).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ..errors import ArtifactError, StoreError
from ..packs.pack_file import PackedBackbone
from ..parity import PARITY_FILE
from ..record_file import parse_record
from ..store.artifact import ADAPTER, MANIFEST
from ..store.export_record import MODEL_FILE
from ..store.manifest_fields import FileRecord, Sha256, TaskName, VersionName
from ..store.reader import BACKBONE_CONFIG, BACKBONE_WEIGHTS, BACKBONES, EXPORT_RECORD, EXPORTS
from ..strict_record import Record, short

INDEX = "index.json"
MAX_INDEX_BYTES = 64 * 2**20

GRAPH_FILES = (EXPORT_RECORD, PARITY_FILE, MODEL_FILE)
"""Of an export: what proves it, and its graph without a weight. Merged weights never travel."""
_OF_EXPORT = re.compile(
    rf"{EXPORTS}/(fp32|fp16|bf16)/({'|'.join(re.escape(name) for name in GRAPH_FILES)})"
)


def _travels(name: str) -> str:
    if name not in (MANIFEST, ADAPTER) and not _OF_EXPORT.fullmatch(name):
        raise ValueError(f"must be a file of a version that is published, got {short(name)}")
    return name


class PublishedVersion(Record):
    """One version."""

    backbone: Sha256
    """Its fingerprint."""
    files: dict[Annotated[str, AfterValidator(_travels)], FileRecord]
    """By the path below the version's folder."""

    @model_validator(mode="after")
    def _is_whole(self) -> PublishedVersion:
        for name in (MANIFEST, ADAPTER):
            if name not in self.files:
                raise ValueError(f"files must state {name}")
        return self

    def is_same(self, other: PublishedVersion) -> bool:
        """Whether the two are the same delta of the same manifest."""
        return all(self.files[name] == other.files[name] for name in (MANIFEST, ADAPTER))

    def objects(self, task: str, version: str) -> dict[str, str]:
        """Names of its files to those of their objects."""
        folder = f"tasks/{task}/{version}/{_digest(self.files)}"
        return {name: f"{folder}/{name}" for name in self.files}


class PublishedTask(Record):
    """One task."""

    current: VersionName
    versions: Annotated[dict[VersionName, PublishedVersion], Field(min_length=1)]

    @model_validator(mode="after")
    def _current_is_here(self) -> PublishedTask:
        if self.current not in self.versions:
            raise ValueError(f"current must be one of the versions, got {self.current!r}")
        return self


class OriginIndex(Record):
    """All of index.json."""

    origin_version: Literal[1] = 1
    tasks: dict[TaskName, PublishedTask]
    backbones: dict[Sha256, PackedBackbone]
    """By fingerprint."""

    @model_validator(mode="after")
    def _has_backbones(self) -> OriginIndex:
        for task, published in self.tasks.items():
            for version, entry in published.versions.items():
                if entry.backbone not in self.backbones:
                    raise ValueError(f"backbones must state that of {task}/{version}")
        return self

    @classmethod
    def from_json(cls, data: bytes, where: str) -> OriginIndex:
        """What the bytes of an index say.

        Raises:
            ArtifactError: If they are none that this release reads.
        """
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{where}: must be JSON: {error}") from error
        stated = raw.get("origin_version") if isinstance(raw, dict) else None
        if stated != 1:
            raise ArtifactError(
                f"{where}: origin_version must be 1, which this release reads, got "
                f"{short(stated)}. Use the glora-deploy that wrote it, or a newer one."
            )
        return parse_record(cls, data, where)

    def to_json(self) -> bytes:
        """The bytes of index.json; the same index always gives the same bytes."""
        raw = self.model_dump(mode="json")
        return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    def find(self, task: str, version: str) -> PublishedVersion | None:
        """A version, if it is published."""
        published = self.tasks.get(task)
        return published.versions.get(version) if published else None

    def with_current(
        self, task: str, version: str, entry: PublishedVersion, backbone: PackedBackbone
    ) -> OriginIndex:
        """The index in which a version is published and answers.

        Args:
            task: Its task.
            version: Its name.
            entry: Its files; where it is published already, what is stated stays.
            backbone: Its backbone's files; where they are stated already, that stays.

        Raises:
            StoreError: If another version of that name is published.
        """
        there = self.find(task, version)
        if there is not None and not there.is_same(entry):
            raise StoreError(
                f"{task}/{version}: must be new at the origin, or the same; another version of "
                "that name is published there. Publish this one under another name."
            )
        versions = dict(self.tasks[task].versions) if task in self.tasks else {}
        versions.setdefault(version, entry)
        published = PublishedTask(current=version, versions=versions)
        return OriginIndex(
            tasks={**self.tasks, task: published},
            backbones={entry.backbone: backbone, **self.backbones},
        )


EMPTY = OriginIndex(tasks={}, backbones={})
"""Of an origin that nothing was published to yet."""


def backbone_objects(
    fingerprint: str, backbone: PackedBackbone
) -> dict[str, tuple[str, FileRecord]]:
    """Names of a backbone's files to the names and records of their objects."""
    files = {BACKBONE_CONFIG: backbone.config, BACKBONE_WEIGHTS: backbone.weights}
    folder = f"{BACKBONES.lstrip('.')}/{fingerprint}/{_digest(files)}"
    return {name: (f"{folder}/{name}", record) for name, record in files.items()}


def _digest(files: Mapping[str, FileRecord]) -> str:
    stated = sorted((name, record.sha256, record.size_bytes) for name, record in files.items())
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:16]
