"""The folder of a report: written whole, and never over what somebody else put there."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..errors import ArtifactError, StoreError
from ..record_file import read_record
from ..store.atomic_files import flush, flush_tree, replace_folder, scratch_folder
from ..store.manifest_fields import TaskName, VersionName
from ..strict_record import Line, Record

PAGE = "index.html"
RECORD = "report.json"


class ReportRecord(Record):
    """report.json: which files of the folder are those of a report."""

    report_version: Literal[1]
    task: TaskName
    version: VersionName
    files: tuple[Line, ...]
    """Every file but this one."""


def require_replaceable(out: Path) -> None:
    """Check that a folder is missing, empty, or holds a report and nothing else.

    Raises:
        StoreError: If it is not; names what is in the way.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise StoreError(f"{out}: --out must be a folder, something else is there")
    present = {entry.name for entry in out.iterdir()}
    if not present:
        return
    try:
        record = read_record(ReportRecord, out / RECORD, "")
        foreign = sorted(present - {RECORD, *record.files})
    except ArtifactError:
        foreign = sorted(present)
    if foreign:
        raise StoreError(
            f"{out}: --out must be a new folder, or one that holds a report and nothing else, got "
            f"{foreign[0]}. Give another one, or move what is in it away."
        )


def write_folder(out: Path, files: Mapping[str, bytes], *, task: str, version: str) -> None:
    """Make a folder hold a report and nothing else, in one step where the system can.

    Args:
        out: The folder; made if it is missing. One that holds a report is replaced.
        files: By name.
        task: That it is about.
        version: That it is about.

    Raises:
        StoreError: As ``require_replaceable``.
        OSError: If it cannot be written; it is as it was then.
    """
    require_replaceable(out)
    record = ReportRecord(report_version=1, task=task, version=version, files=tuple(sorted(files)))
    place = out.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place.parent)) from error
    with scratch_folder(place.parent) as scratch:
        new = scratch / place.name
        new.mkdir()
        for name, data in {**files, RECORD: record.to_json()}.items():
            (new / name).write_bytes(data)
        flush_tree(new)
        replace_folder(new, place)
        flush(place.parent)
