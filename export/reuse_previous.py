"""What of a present export stays when formats are added to it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glora_deploy.errors import ArtifactError, NonFiniteError
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import FILES, ExportRecord, Format
from glora_deploy.store.redact import names_place
from glora_deploy.tensorrt_runtime.plan_json import read_plan_info

from .int8.report import QuantizeReport
from .require_format import require_format

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reused:
    """What was copied."""

    formats: frozenset[Format] = frozenset()
    overflow: tuple[str, ...] = ()
    """The operations that the ONNX model computes in fp32, from the report beside it."""


def reuse_formats(
    old: Path,
    new: Path,
    artifact: Artifact,
    precision: Precision,
    backbone: Path,
    remade: Collection[Format],
) -> Reused:
    """Copy the formats of a present export of the same delta, but for those made anew.

    A format of which a file is missing, altered, or of another artifact or precision is left out
    with a warning: an export is derived and can be made again.

    Args:
        old: The export folder as it is; may be missing.
        new: Gets the copies.
        artifact: What both are exports of.
        precision: Of both.
        backbone: The backbone's folder in the store.
        remade: Formats not to copy.
    """
    try:
        record = ExportRecord.read(old)
        if record is None:
            return Reused()
        record.require_of(old, artifact.manifest, precision)
    except ArtifactError as error:
        log.warning("%s Nothing of it is kept.", error)
        return Reused()
    reused: set[Format] = set()
    for name in record.formats:
        if name in remade:
            continue
        try:
            for file in FILES[name]:
                record.require_intact(old, file)
                _require_no_place(old / file, artifact)
            require_format(old, name, artifact, precision, backbone)
        except (ArtifactError, NonFiniteError) as error:
            log.warning("%s Its format, %s, is not kept.", error, name)
            continue
        for file in FILES[name]:
            (new / file).parent.mkdir(exist_ok=True)
            # A copy, not a link: onnx refuses external data with more than one name.
            shutil.copyfile(old / file, new / file)
        reused.add(name)
    return Reused(frozenset(reused), _overflow(old) if "onnx" in reused else ())


def drop_stale(folder: Path, name: Literal["int8", "trt"]) -> bool:
    """Remove a file that its own report does not bear out, and the report.

    That of an int8 model of an earlier release cannot be read, and nothing then tells whether its
    products can saturate; that of a plan may name another graph or other weights than lie there.

    Returns:
        Whether it was so.
    """
    try:
        _REPORTS[name](folder)
    except ArtifactError as error:
        log.warning("%s %s", error, _DROPPED[name])
        for file in FILES[name]:
            (folder / file).unlink(missing_ok=True)
        return True
    return False


_REPORTS: dict[str, Callable[[Path], object]] = {
    "int8": QuantizeReport.read,
    "trt": read_plan_info,
}
_DROPPED = {
    "int8": "The int8 model is not kept.",
    "trt": "The plan is not kept: ask for trt to build it from this graph.",
}


def _require_no_place(path: Path, artifact: Artifact) -> None:
    """Earlier releases wrote the folder of the data into what may be given away."""
    if path.suffix == ".json" and names_place(artifact.manifest, path.read_bytes()):
        raise ArtifactError(f"{path}: names the data's folder.")


def _overflow(folder: Path) -> tuple[str, ...]:
    try:
        path = folder / PARITY_FILE
        return Report.from_json(path.read_bytes(), str(path)).overflow
    except (ArtifactError, FileNotFoundError):
        return ()
