"""The pack: tasks of a store in one file, a tar whose every byte follows from its first member.

That member, ``.pack.json``, states the tasks, their versions and backbones, and size and sha256 of
every file. The names of the other members, their order and their headers follow from it. A reader
makes each header anew and compares, so it interprets none: what is a link, leads out of a folder,
is larger than stated or was added is not part of a pack (docs/format.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import AfterValidator, Field, model_validator

from ..errors import ArtifactError
from ..record_file import parse_record
from ..store.artifact import ADAPTER, MANIFEST
from ..store.companions import COMPANION_RECORD, COMPANIONS
from ..store.manifest import MAX_MANIFEST_BYTES, FileRecord
from ..store.manifest_fields import Sha256, TaskName, VersionName
from ..store.reader import BACKBONE_CONFIG, BACKBONE_WEIGHTS, BACKBONES, CURRENT
from ..strict_record import Record, short

INDEX = ".pack.json"
PACK_VERSIONS = (1, 2)
"""2 is one with files beside a version; releases before those read 1 alone."""
_MAX_INDEX_BYTES = MAX_MANIFEST_BYTES

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_CHUNK = 2**20

OnBytes = Callable[[int], None]
"""Told how many more bytes are done."""


def _beside(name: str) -> str:
    if name != COMPANION_RECORD and name not in COMPANIONS:
        raise ValueError(f"must be {COMPANION_RECORD} or what it may name, got {short(name)}")
    return name


BesideName = Annotated[str, AfterValidator(_beside)]


class PackedVersion(Record):
    """The files of one version."""

    manifest: FileRecord
    adapter: FileRecord
    companions: Annotated[dict[BesideName, FileRecord], Field(default_factory=dict)]
    """What lies beside the two, companions.json included; empty before pack version 2."""


class PackedTask(Record):
    """One task, or some versions of it."""

    current: VersionName | None
    """One of the versions; None if the current one is not packed."""
    versions: Annotated[dict[VersionName, PackedVersion], Field(min_length=1)]

    @model_validator(mode="after")
    def _current_is_packed(self) -> PackedTask:
        if self.current is not None and self.current not in self.versions:
            raise ValueError(f"current must be one of the versions, got {self.current!r}")
        return self


class PackedBackbone(Record):
    """The files of one backbone."""

    config: FileRecord
    weights: FileRecord


class PackIndex(Record):
    """All of ``.pack.json``."""

    pack_version: Literal[1, 2]
    tasks: Annotated[dict[TaskName, PackedTask], Field(min_length=1)]
    backbones: dict[Sha256, PackedBackbone]
    """By fingerprint."""

    @model_validator(mode="after")
    def _lowest_version(self) -> PackIndex:
        lowest = lowest_version(self.tasks)
        if self.pack_version != lowest:
            raise ValueError(f"pack_version must be {lowest} for what it states")
        return self

    def members(self) -> dict[str, FileRecord]:
        """Every other file, in the order of the pack, by its path in a store."""
        found: dict[str, FileRecord] = {}
        for task, packed in sorted(self.tasks.items()):
            for version, files in sorted(packed.versions.items()):
                found[f"{task}/{version}/{MANIFEST}"] = files.manifest
                found[f"{task}/{version}/{ADAPTER}"] = files.adapter
                for name, record in sorted(files.companions.items()):
                    found[f"{task}/{version}/{name}"] = record
            if packed.current is not None:
                found[f"{task}/{CURRENT}"] = FileRecord.of_bytes(f"{packed.current}\n".encode())
        for fingerprint, backbone in sorted(self.backbones.items()):
            found[f"{BACKBONES}/{fingerprint}/{BACKBONE_CONFIG}"] = backbone.config
            found[f"{BACKBONES}/{fingerprint}/{BACKBONE_WEIGHTS}"] = backbone.weights
        return found

    def data_bytes(self) -> int:
        """Bytes of all the files."""
        return sum(record.size_bytes for record in self.members().values())

    def to_json(self) -> bytes:
        """The bytes of ``.pack.json``; the same index always gives the same bytes."""
        raw = self.model_dump(mode="json", exclude_defaults=True)  # no empty companions
        return json.dumps(raw, indent=1, sort_keys=True).encode() + b"\n"


def lowest_version(tasks: Mapping[str, PackedTask]) -> Literal[1, 2]:
    """The pack version of the oldest releases that can read these."""
    versions = (version for task in tasks.values() for version in task.versions.values())
    return 2 if any(version.companions for version in versions) else 1


def write_pack(
    file: BinaryIO, index: PackIndex, sources: Mapping[str, Path | bytes], on_bytes: OnBytes
) -> None:
    """Write a whole pack, not flushed.

    Args:
        file: Where; empty.
        index: What.
        sources: Every member's content, or the file that holds it.
        on_bytes: Told of the progress.

    Raises:
        ArtifactError: If a file does not hold what the index states, or there are too many files.
        OSError: If a file cannot be read, or there is no space.
    """
    data = index.to_json()
    if len(data) > _MAX_INDEX_BYTES:
        raise ArtifactError(
            f"{INDEX}: must have at most {_MAX_INDEX_BYTES} bytes, got {len(data)}. "
            "Pack fewer versions in one file."
        )
    file.write(_header(INDEX, len(data)) + data + _padding(len(data)))
    for name, record in index.members().items():
        file.write(_header(name, record.size_bytes))
        source = sources[name]
        if isinstance(source, bytes):
            file.write(source)
            on_bytes(len(source))
        else:
            with source.open("rb") as content:
                _copy(content, file, record, str(source), on_bytes, "Restore the file.")
        file.write(_padding(record.size_bytes))
    file.write(_END)


def read_index(file: BinaryIO, where: str) -> PackIndex:
    """The index of a pack of which every file is there in full; the members follow.

    Args:
        file: At its start.
        where: Named in errors.

    Raises:
        ArtifactError: If this is no pack, is one that this release does not read, or has another
            size than its index states.
    """
    header = file.read(_BLOCK)
    try:
        size = tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise _no_pack(where) from error
    if not 0 < size <= _MAX_INDEX_BYTES or header != _header(INDEX, size):
        raise _no_pack(where)
    data = file.read(size)
    where_index = f"{where}: {INDEX}"
    try:
        raw = json.loads(data)
        stated = raw.get("pack_version") if isinstance(raw, dict) else None
        if type(stated) is not int or stated not in PACK_VERSIONS:
            raise ArtifactError(
                f"{where_index}: pack_version must be {' or '.join(map(str, PACK_VERSIONS))}, "
                f"which this release reads, got {stated!r}. Use the glora-deploy that wrote it, "
                "or a newer one."
            )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where_index}: must be JSON: {error}") from error
    index = parse_record(PackIndex, data, where_index)
    if index.to_json() != data:
        raise ArtifactError(f"{where_index}: must be written as 'glora pack' writes it")
    _require_same(file.read(len(_padding(size))), _padding(size), where_index)
    stated_bytes = file.tell() + len(_END)
    for name, record in index.members().items():
        stated_bytes += len(_header(name, record.size_bytes))
        stated_bytes += record.size_bytes + len(_padding(record.size_bytes))
    found_bytes = os.fstat(file.fileno()).st_size
    if found_bytes != stated_bytes:
        raise ArtifactError(
            f"{where}: has {found_bytes} bytes on disk, {stated_bytes} by its {INDEX}. "
            "Get the file again."
        )
    return index


def extract(file: BinaryIO, index: PackIndex, folder: Path, where: str, on_bytes: OnBytes) -> None:
    """Write every member into an empty folder, which is a store then; nothing is flushed.

    Args:
        file: A pack, as ``read_index`` leaves it.
        index: Its index.
        folder: Empty.
        where: Named in errors.
        on_bytes: Told of the progress.

    Raises:
        ArtifactError: If a byte is not what the index states.
        OSError: If there is no space.
    """
    for name, record in index.members().items():
        header = _header(name, record.size_bytes)
        _require_same(file.read(len(header)), header, f"{where}: {name}")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            _copy(file, target, record, f"{where}: {name}", on_bytes, "Get the file again.")
        padding = _padding(record.size_bytes)
        _require_same(file.read(len(padding)), padding, f"{where}: {name}")
    _require_same(file.read(), _END, where)


def _copy(
    source: BinaryIO, target: BinaryIO, record: FileRecord, where: str, on_bytes: OnBytes, fix: str
) -> None:
    """Copy exactly the bytes of a record, checked on the way."""
    digest, left = hashlib.sha256(), record.size_bytes
    while left and (chunk := source.read(min(_CHUNK, left))):
        target.write(chunk)
        digest.update(chunk)
        left -= len(chunk)
        on_bytes(len(chunk))
    found = FileRecord(sha256=digest.hexdigest(), size_bytes=record.size_bytes - left)
    record.require_equal(found, where, INDEX, fix)


def _header(name: str, size: int) -> bytes:
    """The tar header of a file: nobody's, of no time, readable by all."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _require_same(found: bytes, expected: bytes, where: str) -> None:
    if found != expected:
        raise ArtifactError(f"{where}: must be stored as {INDEX} states. Get the file again.")


def _no_pack(where: str) -> ArtifactError:
    return ArtifactError(f"{where}: must be a file that 'glora pack' wrote. Get the file again.")
