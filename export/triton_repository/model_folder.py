"""A model's folder in a repository, which is replaced whole: it must be ours, and only ours.

It must not import ONNX: what cannot be written is refused before minutes go into an export.
"""

from __future__ import annotations

import os
from pathlib import Path

from glora_deploy.errors import ExportError
from glora_deploy.wording import some_of

from .config_pbtxt import (
    CONFIG,
    HEADER,
    LABELS,
    VERSION_RECORD,
    WARMUP_FOLDER,
    WARMUP_IMAGE,
    VersionRecord,
)


def read_versions(place: Path) -> dict[int, VersionRecord]:
    """The versions in a model's folder, by number, once nothing else is in it; none if missing.

    Files of ours may be missing or damaged: the next export makes them again.

    Raises:
        ExportError: If the folder is something else, or holds what no export wrote.
        ArtifactError: If a version does not say what it is.
    """
    if not os.path.lexists(place):
        return {}
    config = place / CONFIG
    if place.is_symlink() or not config.is_file() or not config.read_text().startswith(HEADER):
        raise ExportError(
            f"{place}: must be free or a model that glora-deploy wrote, got something else. "
            "Move it away, or give another repository."
        )
    folders = [entry for entry in place.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    versions = {int(folder.name): VersionRecord.read(folder) for folder in folders}
    if foreign := _foreign(place, versions):
        raise ExportError(
            f"{place}: must hold one model and nothing else, since it is replaced whole, got "
            f"{some_of(foreign, 1)}. Move what is not the model's away."
        )
    return versions


def _foreign(place: Path, versions: dict[int, VersionRecord]) -> list[str]:
    """What no export put into the folder, as paths in it; of a foreign folder its path alone."""
    files = {Path(CONFIG), Path(LABELS), Path(WARMUP_FOLDER, WARMUP_IMAGE)}
    for number, record in versions.items():
        files |= {Path(str(number), name) for name in (VERSION_RECORD, *record.files)}
    folders = {parent for file in files for parent in file.parents}
    foreign = []
    for folder, inner, names in os.walk(place):
        here = Path(folder).relative_to(place)
        for name in [*inner]:
            if here / name not in folders or Path(folder, name).is_symlink():
                inner.remove(name)
                foreign.append(here / name)
        foreign += [here / name for name in names if here / name not in files]
    return sorted(path.as_posix() for path in foreign)
