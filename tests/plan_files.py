"""Plans that no library built, described as if one had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import (
    MODEL_FILE,
    PLAN_FILE,
    SIDECAR_FILE,
    WEIGHTS_FILE,
    ExportRecord,
)
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.tensorrt_runtime.plan_json import PlanInfo, TensorRecord


def make_plan_info(**changes: Any) -> PlanInfo:
    """plan.json of a plan of three bytes; ``changes`` replace whole fields."""
    fields: dict[str, Any] = {
        "library": "tensorrt_rtx",
        "version": "1.7.1.116",
        "gpu": None,
        "compute_capabilities": (),
        "hardware_compatibility": None,
        "inputs": (TensorRecord(name="image", dtype="float32", shape=(-1, 3, 32, 32)),),
        "outputs": (TensorRecord(name="logits", dtype="float32", shape=(-1, 5)),),
        "batch": (1, 2, 4),
        "precision": "fp32",
        "tf32": False,
        "refittable": False,
        "stripped": False,
        "parameters": ("head.bias", "head.weight"),
        "graph": FileRecord.of_bytes(b"graph"),
        "weights": FileRecord.of_bytes(b"weights"),
        "plan": FileRecord.of_bytes(b"plan"),
        "build_seconds": 1.5,
    }
    return PlanInfo(**{**fields, **changes})


def plant_plan(folder: Path, artifact: Artifact, *, usable: bool = True, **changes: Any) -> None:
    """Put a plan into the folder of an export, and into its record."""
    (folder / PLAN_FILE).write_bytes(b"plan")
    info = make_plan_info(
        graph=FileRecord.of_file(folder / MODEL_FILE),
        weights=FileRecord.of_file(folder / WEIGHTS_FILE),
        **changes,
    )
    (folder / SIDECAR_FILE).write_bytes(info.to_json())
    ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=usable).write(folder)
