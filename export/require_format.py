"""Whether the files of one format of an export are what its artifact and precision make of them.

``ExportRecord.require_intact`` tells whether a file is the one that was written; this tells
whether it could have been written for this export at all.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from glora_deploy.errors import ArtifactError
from glora_deploy.precision import PRECISIONS, Precision, is_float
from glora_deploy.store.artifact import MANIFEST, Artifact, read_artifact
from glora_deploy.store.export_record import (
    DELTA_FOLDER,
    INT8_REPORT_FILE,
    MODEL_FILE,
    PIXELS_FILE,
    SIDECAR_FILE,
    WEIGHTS_FILE,
    Format,
    require_precision,
)
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import read_layout
from glora_deploy.strict_record import short
from glora_deploy.tensorrt_runtime.plan_json import read_plan_info

from .int8.report import QuantizeReport
from .onnx_model.write import describe
from .timm_folder import require_config


def require_format(
    folder: Path, name: Format, artifact: Artifact, precision: Precision, backbone: Path
) -> None:
    """Check the files of one format in an export folder.

    Args:
        folder: The export.
        name: Of the format, whose files are all there.
        artifact: What it is an export of.
        precision: Of the export.
        backbone: The backbone's folder in the store.

    Raises:
        ArtifactError: If one is of another artifact or precision; names the file and both sides.
    """
    manifest = artifact.manifest
    match name:
        case "merged":
            require_config(folder, manifest, backbone)
            require_precision(folder, precision)
        case "delta":
            _require_delta(folder / DELTA_FOLDER, manifest, precision)
        case "onnx":
            _require_graph(folder / MODEL_FILE, manifest, precision)
        case "pixels":
            _require_graph(folder / PIXELS_FILE, manifest, precision)
        case "int8":
            report = QuantizeReport.read(folder)
            _require(
                folder / INT8_REPORT_FILE,
                "adapter_sha256",
                report.adapter_sha256,
                manifest.adapter.sha256,
            )
        case "trt":
            _require(
                folder / SIDECAR_FILE, "precision", read_plan_info(folder).precision, precision
            )


def _require_delta(folder: Path, manifest: Manifest, precision: Precision) -> None:
    """The delta must say what its artifact says, but for what another dtype changes."""
    delta = read_artifact(folder)
    delta.tensors()
    where = folder / MANIFEST
    _require(where, "dtype", delta.manifest.dtype, PRECISIONS[precision].name)
    same = manifest.model_copy(update={"dtype": delta.manifest.dtype})
    _require(where, "its digest", delta.manifest.digest(), same.digest())


def _require_graph(path: Path, manifest: Manifest, precision: Precision) -> None:
    """The graph must describe the artifact, and its weights be those of model.safetensors."""
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own kind
        raise ArtifactError(f"{path}: not a readable ONNX model. Export it again.") from error
    stated = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in describe_artifact(manifest, precision).items():
        _require(path, key, stated.get(key), value)
    places = read_layout(path.with_name(WEIGHTS_FILE))
    for weight in model.graph.initializer:
        place = places.get(weight.name)
        if place is None:
            continue
        dtype = tensor_dtype_to_np_dtype(weight.data_type)
        expected = PRECISIONS[precision] if is_float(place.dtype) else place.dtype
        _require(path, f"dtype of {weight.name}", dtype, expected)
        outside = {entry.key: entry.value for entry in weight.external_data}
        if outside:
            at = (outside.get("location"), outside.get("offset"), outside.get("length"))
            there = (WEIGHTS_FILE, str(place.offset), str(place.size_bytes))
            _require(path, f"place of {weight.name}", at, there)


def describe_artifact(manifest: Manifest, precision: Precision) -> dict[str, str]:
    """The metadata of the ONNX model of an artifact."""
    return describe(
        task=manifest.task,
        version=manifest.version,
        labels=manifest.labels,
        precision=precision,
        preprocessing=manifest.preprocessing.model_dump(mode="json"),
    )


def _require(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ArtifactError(
            f"{path}: {what} must be {short(expected)}, got {short(found)}. Export it again."
        )
