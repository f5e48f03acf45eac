"""plan.json, beside a TensorRT plan: what it was made of, and where it runs.

A plan file tells nothing about itself before it is loaded, and a library that cannot load it says
little more. The sidecar names the library, its exact version, the GPUs it is for and the files it
was made of, so that a plan that cannot run here, or is of other weights, is refused in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..errors import ArtifactError, ExportError, NotRunnableError
from ..precision import Precision
from ..record_file import read_record
from ..store.export_record import MODEL_FILE, PLAN_FILE, SIDECAR_FILE, WEIGHTS_FILE
from ..store.manifest_fields import FileRecord
from ..strict_record import Count, Line, Record

Backend = Literal["auto", "tensorrt", "rtx"]
Library = Literal["tensorrt", "tensorrt_rtx"]
HardwareCompatibility = Literal["ampere_plus", "same_compute_capability"]

_AMPERE = 8
_REMEDY = "Build the plan again."


class TensorRecord(Record):
    """An input or output of a plan."""

    name: Line
    dtype: Line
    """As NumPy calls it."""
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    """-1 stands for the batch."""


class PlanInfo(Record):
    """All of plan.json."""

    format_version: Literal[1] = 1
    library: Library
    version: Line
    """Of the library; no other version loads the plan."""
    gpu: Line | None
    """Name of the GPU that kernels were timed on; None for TensorRT-RTX, which times none."""
    compute_capabilities: tuple[Line, ...]
    """GPUs the plan is for, such as ``8.6``; empty means Ampere and newer."""
    hardware_compatibility: HardwareCompatibility | None
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    batch: tuple[Count, Count, Count]
    """Least, best and most images per call."""
    precision: Precision
    tf32: bool
    """Whether float32 products may be rounded to TF32's 10-bit mantissa."""
    refittable: bool
    """Whether a loaded engine may be given other weights."""
    stripped: bool
    """Whether the weights are still to be read from model.onnx."""
    parameters: tuple[Line, ...]
    """Weights the graph reads from model.safetensors: what refitting replaces, all at once."""
    graph: FileRecord
    weights: FileRecord
    plan: FileRecord
    build_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


def read_plan_info(folder: Path) -> PlanInfo:
    """The sidecar of a folder's plan, once the files it names are the ones that lie there.

    The ONNX model and the weights may be absent, since a plan runs without them; if present they
    must be those the plan was built from.

    Raises:
        ArtifactError: If plan.json or model.plan is missing, or a file is damaged or of another
            export; names both sides.
    """
    info = read_record(PlanInfo, folder / SIDECAR_FILE, _REMEDY)
    if not (folder / PLAN_FILE).is_file():
        raise ArtifactError(f"{folder / PLAN_FILE}: must be a file, none is here. {_REMEDY}")
    for name, record in (
        (PLAN_FILE, info.plan),
        (MODEL_FILE, info.graph),
        (WEIGHTS_FILE, info.weights),
    ):
        path = folder / name
        if path.is_file():
            record.require_equal(FileRecord.of_file(path), str(path), SIDECAR_FILE)
    return info


def require_runnable(
    info: PlanInfo, *, library: Library, version: str, capability: str | None
) -> None:
    """Check that a plan can run with this library on this machine.

    Args:
        info: Of the plan.
        library: Installed here.
        version: Of that library.
        capability: Compute capability of the GPU here, such as ``8.6``; None without a GPU.

    Raises:
        ExportError: If the library is another.
        NotRunnableError: If there is no GPU here, or none that the plan was built for.
    """
    if (info.library, info.version) != (library, version):
        raise ExportError(
            f"{PLAN_FILE}: must run with {info.library} {info.version}, which built it, "
            f"got {library} {version}. Build the plan again here."
        )
    if capability is None:
        raise NotRunnableError(f"{PLAN_FILE}: must run on a GPU, got none. Use the ONNX model.")
    if not _covers(info, capability):
        wanted = " or ".join(info.compute_capabilities) or f"{_AMPERE}.0 and newer"
        raise NotRunnableError(
            f"{PLAN_FILE}: must run on a GPU of compute capability {wanted}, got {capability}. "
            "Build the plan again for this one."
        )


def _covers(info: PlanInfo, capability: str) -> bool:
    if info.hardware_compatibility == "ampere_plus" or not info.compute_capabilities:
        return int(capability.partition(".")[0]) >= _AMPERE
    return capability in info.compute_capabilities
