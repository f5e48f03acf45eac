"""What is served, in the words of the protocol: records for JSON and protobuf's messages alike.

The keys are the fields of ``ModelMetadataResponse``, ``ModelConfig``, ``ModelStatistics`` and the
repository index, so gRPC fills its messages with ``google.protobuf.json_format.ParseDict``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version as installed_version
from typing import Any

from ..errors import InputError, UnknownTaskError
from ..first_use import NOT_HERE
from ..tasks.contract import Duration, ServedVersion, State, Statistics, TaskEngine
from .infer import IMAGE, IMAGE_BYTES, OUTPUTS
from .version_names import client_name, find_version, require_name

SERVER_NAME = "glora-deploy"
PLATFORM = "glora_deploy"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
"""Those of Triton's that are implemented; ``binary_tensor_data`` is one of HTTP alone."""

READY: State = "READY"


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of this server."""
    return {
        "name": SERVER_NAME,
        "version": installed_version("glora-deploy"),
        "extensions": list(EXTENSIONS),
    }


def model_metadata(engine: TaskEngine, task: str, version: str = "") -> dict[str, Any]:
    """Inputs and outputs of a model, and its versions that are ready; the one named, if one is.

    Raises:
        InputError, UnknownTaskError: As ``find_version``.
    """
    served = find_version(engine, task, version)
    return {
        "name": served.task,
        "versions": [
            client_name(engine, each.task, each.version)
            for each in ([served] if version else engine.versions(served.task))
            if each.state == READY
        ],
        "platform": PLATFORM,
        "inputs": [
            {"name": IMAGE, "datatype": "FP32", "shape": [-1, *served.input_shape]},
            {"name": IMAGE_BYTES, "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, len(served.labels)]}
            for name in OUTPUTS
        ],
    }


def is_ready(engine: TaskEngine, task: str, version: str = "") -> bool:
    """Whether a model, or one version of it, answers; what is not there does not."""
    try:
        return engine.ready and find_version(engine, task, version).state == READY
    except (InputError, UnknownTaskError):
        return False


def model_config(engine: TaskEngine, task: str, version: str = "") -> dict[str, Any]:
    """The configuration that a Triton server would have for this model.

    Either input alone is a whole call, so both are optional.

    Raises:
        InputError, UnknownTaskError: As ``find_version``.
    """
    served = find_version(engine, task, version)
    n_classes = len(served.labels)
    return {
        "name": served.task,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"all": {}},
        "max_batch_size": engine.max_batch,
        "input": [
            {
                "name": IMAGE,
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NONE",
                "dims": list(served.input_shape),
                "optional": True,
            },
            {
                "name": IMAGE_BYTES,
                "data_type": "TYPE_STRING",
                "format": "FORMAT_NONE",
                "dims": [1],
                "optional": True,
            },
        ],
        "output": [
            {
                "name": name,
                "data_type": "TYPE_FP32",
                "dims": [n_classes],
                "label_filename": "labels.txt",
            }
            for name in OUTPUTS
        ],
        "dynamic_batching": {},
        "parameters": {key: {"string_value": value} for key, value in _provenance(served).items()},
    }


def repository_index(
    engine: TaskEngine, *, ready: bool = False, absent: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Every version of every task, and whether it answers; with a reason where there is one.

    Args:
        engine: Knows the tasks.
        ready: List those that answer only.
        absent: Tasks that come when they are first asked for, and their versions.
    """
    elsewhere = {} if ready else absent or {}
    coming = [
        {
            "name": task,
            "version": client_name(engine, task, version),
            "state": "UNAVAILABLE",
            "reason": NOT_HERE,
        }
        for task, version in elsewhere.items()
    ]
    return coming + [
        {
            "name": each.task,
            "version": client_name(engine, each.task, each.version),
            "state": each.state,
        }
        | ({"reason": each.reason} if each.reason else {})
        for each in engine.versions()
        if not ready or each.state == READY
    ]


def model_statistics(
    engine: TaskEngine, task: str = "", version: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """Counts of a version, of a task, or of all.

    Raises:
        InputError, UnknownTaskError: As ``find_version``.
    """
    if version:
        served = find_version(engine, task, version)
        found: Sequence[Statistics] = engine.statistics(served.task, served.version)
    elif task:
        require_name("task", task)
        found = engine.statistics(task)
    else:
        found = engine.statistics()
    return {"model_stats": [_statistics(engine, each) for each in found]}


def _statistics(engine: TaskEngine, counted: Statistics) -> dict[str, Any]:
    none = _duration(Duration())
    return {
        "name": counted.task,
        "version": client_name(engine, counted.task, counted.version),
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.inference_count,
        "execution_count": counted.execution_count,
        "inference_stats": {
            "success": _duration(counted.success),
            "fail": _duration(counted.fail),
            "queue": _duration(counted.queue),
            "compute_input": none,
            "compute_infer": _duration(counted.compute_infer),
            "compute_output": none,
            "cache_hit": _duration(counted.cache_hit),
            "cache_miss": _duration(counted.cache_miss),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                "compute_input": none,
                "compute_infer": _duration(batch.infer),
                "compute_output": none,
            }
            for batch in counted.batches
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": counted.memory_bytes}],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def _provenance(served: ServedVersion) -> dict[str, str]:
    """The keys that an exported Triton repository has too."""
    return {
        "task": served.task,
        "version": served.version,
        "adapter_sha256": served.delta_sha256,
        "backbone": served.backbone,
        "preprocessing": json.dumps(asdict(served.preprocessing)),
    }
