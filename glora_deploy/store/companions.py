"""Files that may lie beside a version: how it came about, for people and for ``glora train``.

Nothing that a version computes follows from them, so each may be missing. ``companions.json``
states their bytes, and which delta they belong to; they are written with the version, once. A new
kind of file is one more line of ``COMPANIONS``, handed to ``ArtifactStore.put(companions=...)`` and
read by ``StoreReader.companion``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from ..errors import ArtifactError, GloraDeployError, StoreError
from ..record_file import read_bytes, read_record
from ..strict_record import Record, short
from .atomic_files import write_durable
from .manifest_fields import FileRecord, Sha256
from .run_settings import renamed_settings, shared_settings

COMPANION_RECORD = "companions.json"
RUN_SETTINGS = "run.toml"
HISTORY = "history.json"

_REMEDY = "Restore the file."


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """One kind of file beside a version."""

    max_bytes: int
    shared: Callable[[bytes], bytes] = lambda data: data
    """As it goes into a pack: without places on this machine."""
    renamed: Callable[[bytes, str], bytes] = lambda data, task: data
    """As it is for a task by another name."""


COMPANIONS: Mapping[str, Companion] = {
    RUN_SETTINGS: Companion(max_bytes=2**16, shared=shared_settings, renamed=renamed_settings),
    HISTORY: Companion(max_bytes=2**23),
}
"""Every kind there is, by the name of its file."""


def _known(name: str) -> str:
    if name not in COMPANIONS:
        raise ValueError(f"must be one of {', '.join(COMPANIONS)}, got {short(name)}")
    return name


CompanionName = Annotated[str, AfterValidator(_known)]


class CompanionRecord(Record):
    """All of companions.json."""

    adapter_sha256: Sha256
    files: Annotated[dict[CompanionName, FileRecord], Field(min_length=1)]


def require_companions(companions: Mapping[str, bytes]) -> None:
    """Check that files can lie beside a version.

    Raises:
        ValueError: If there is no such kind, or one is too large.
    """
    for name, data in companions.items():
        limit = COMPANIONS[_known(name)].max_bytes
        if len(data) > limit:
            raise ValueError(f"{name} must have at most {limit} bytes, got {len(data)}")


def companion_files(adapter: FileRecord, companions: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that lie beside a version, their record included; empty if there are none.

    Args:
        adapter: The delta they belong to.
        companions: Content by name.

    Raises:
        ValueError: As ``require_companions``.
    """
    require_companions(companions)
    if not companions:
        return {}
    files = {name: FileRecord.of_bytes(data) for name, data in sorted(companions.items())}
    record = CompanionRecord(adapter_sha256=adapter.sha256, files=files)
    return {COMPANION_RECORD: record.to_json(), **dict(sorted(companions.items()))}


def write_companions(folder: Path, adapter: FileRecord, companions: Mapping[str, bytes]) -> None:
    """Write files into the folder of a version, flushed to the disk; the folder is not.

    Raises:
        ValueError: As ``require_companions``.
        OSError: If they cannot be written.
    """
    for name, data in companion_files(adapter, companions).items():
        write_durable(folder / name, data)


def read_companions(folder: Path, adapter: FileRecord) -> dict[str, bytes]:
    """Every file that lies beside a version, by name, once it is what companions.json states.

    Raises:
        ArtifactError: If one is missing, altered, too large or a link, or the record is.
    """
    record = _read_record(folder, adapter)
    if record is None:
        return {}
    return {name: _read(folder, name, stated) for name, stated in record.files.items()}


def read_companion(folder: Path, adapter: FileRecord, name: str) -> bytes | None:
    """One of them; None if the version has none of this kind.

    Raises:
        ArtifactError: As ``read_companions``.
    """
    record = _read_record(folder, adapter)
    if record is None or name not in record.files:
        return None
    return _read(folder, name, record.files[name])


def companion_problems(folder: Path, adapter: FileRecord) -> Iterator[str]:
    """What is wrong with the files beside a version, for ``verify``."""
    there = {name for name in COMPANIONS if os.path.lexists(folder / name)}
    try:
        record = _read_record(folder, adapter)
    except GloraDeployError as error:
        yield str(error)
        return
    stated = record.files if record else {}
    for name in sorted(there - stated.keys()):
        yield f"{folder / name}: is not in {COMPANION_RECORD}. Move it away."
    for name, file in stated.items():
        try:
            _read(folder, name, file)
        except GloraDeployError as error:
            yield str(error)


def _read_record(folder: Path, adapter: FileRecord) -> CompanionRecord | None:
    path = folder / COMPANION_RECORD
    if path.is_symlink():
        raise _link(path)
    if not path.exists():
        return None
    record = read_record(CompanionRecord, path, _REMEDY)
    if record.adapter_sha256 != adapter.sha256:
        raise ArtifactError(
            f"{path}: is of the delta {record.adapter_sha256[:12]}.., the one here is "
            f"{adapter.sha256[:12]}... {_REMEDY}"
        )
    return record


def _read(folder: Path, name: str, stated: FileRecord) -> bytes:
    path = folder / name
    if path.is_symlink():
        raise _link(path)
    data = read_bytes(path, COMPANIONS[name].max_bytes, _REMEDY)
    stated.require_equal(FileRecord.of_bytes(data), str(path), COMPANION_RECORD)
    return data


def _link(path: Path) -> StoreError:
    return StoreError(f"{path}: must not be a link, got one to {path.readlink()}. Remove it.")
