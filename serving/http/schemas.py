"""What goes in and out, for OpenAPI: the tests check every answer against these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel

from ..tasks.contract import State

_JSON = "application/json"
_OCTETS = "application/octet-stream"


class _Schema(BaseModel):
    """Closed: a field that is not named here is a mistake of ours."""

    model_config = ConfigDict(extra="forbid")


class Error(_Schema):
    """Of every answer that is not a 200."""

    error: str = Field(examples=["no task 'cars' is served"])


class ServerMetadata(_Schema):
    """Of ``GET /v2``."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Schema):
    """An input or output."""

    name: str
    datatype: str
    shape: list[int] = Field(examples=[[-1, 3, 224, 224]])


class ModelMetadata(_Schema):
    """Of a model."""

    name: str
    versions: list[str] = Field(examples=[["1", "2"]])
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelConfig(BaseModel):
    """As Triton's ``model_config.proto`` names it; more of its fields may come."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[dict[str, JsonValue]]
    output: list[dict[str, JsonValue]]
    parameters: dict[str, dict[str, str]]


class Duration(_Schema):
    """How often, and for how long in all."""

    count: int
    ns: int


class InferenceStatistics(_Schema):
    """Sums since the start."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(_Schema):
    """Batches of one size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class MemoryUsage(_Schema):
    """Bytes held for a version alone."""

    type: str
    id: int
    byte_size: int


class VersionStatistics(_Schema):
    """Of one version."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    response_stats: dict[str, JsonValue]
    batch_stats: list[BatchStatistics]
    memory_usage: list[MemoryUsage]


class ModelStatistics(_Schema):
    """Of the statistics extension."""

    model_stats: list[VersionStatistics]


class OutputTensor(_Schema):
    """``data``, or ``parameters.binary_data_size`` and the bytes behind the JSON."""

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    data: list[float] | list[str] | None = None
    parameters: dict[str, int] | None = None


class InferParameters(_Schema):
    """Who answered, and how long each part took."""

    task: str
    version: str
    delta_sha256: str
    queue_ns: int
    swap_ns: int
    compute_ns: int
    batch_size: int


class InferAnswer(_Schema):
    """Of inference."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: InferParameters
    outputs: list[OutputTensor]


class IndexEntry(_Schema):
    """A version in the repository."""

    name: str
    version: str
    state: State
    reason: str | None = None


class RepositoryIndex(RootModel[list[IndexEntry]]):
    """Of the index."""


class TaskVersion(_Schema):
    """A version as the store and as the protocol name it."""

    version: str
    shown_as: str
    state: State
    reason: str
    delta_sha256: str
    in_memory: bool
    pinned: bool
    size_bytes: int
    mixed: bool


class Task(_Schema):
    """A task; labels and input_shape where one task was asked for."""

    task: str
    current: str | None
    ready: bool
    backbone: str
    n_classes: int
    versions: list[TaskVersion]
    labels: list[str] | None = None
    input_shape: list[int] | None = None


class Tasks(_Schema):
    """Every task."""

    tasks: list[Task]


class LabelProbability(_Schema):
    """A class and how probable it is."""

    label: str = Field(examples=["tabby cat"])
    index: int
    probability: float = Field(ge=0, le=1)


class Prediction(_Schema):
    """Of one image; the most probable first."""

    file: str
    top: list[LabelProbability]


class Milliseconds(_Schema):
    """Where the time went."""

    decode: float
    queue: float
    swap: float
    compute: float
    total: float


class Predictions(_Schema):
    """Of a request, and which delta made them."""

    task: str
    version: str
    delta_sha256: str
    request_id: str
    predictions: list[Prediction]
    batch_size: int
    ms: Milliseconds


class InMemory(_Schema):
    """Merged weights that are held."""

    task: str
    version: str
    size_bytes: int
    pinned: bool
    mixed: bool


class Status(_Schema):
    """At this moment."""

    ready: bool
    tasks: int
    versions: int
    queued_images: int
    in_flight_requests: int
    weights_bytes: int
    budget_bytes: int
    backbone_bytes: int
    swaps: int
    merge_ms: float
    evictions: int
    max_batch: int
    in_memory: list[InMemory]


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "the request is wrong in itself"},
    401: {"model": Error, "description": "the token is missing or wrong"},
    404: {"model": Error, "description": "no such task or version"},
    408: {"model": Error, "description": "the request came too slowly"},
    413: {"model": Error, "description": "over a limit of the server"},
    429: {"model": Error, "description": "too often; see retry-after"},
    503: {"model": Error, "description": "full, too late, unloaded or leaving; see retry-after"},
    "default": {"model": Error, "description": "anything else, such as 405, 499, 500 or 501"},
}

EMPTY: dict[int | str, dict[str, Any]] = {
    200: {"description": "yes; the body is empty", "content": {}},
    **_ERRORS,
}
"""Answers of a route whose status says all."""


def answers(model: type[BaseModel], *, binary: bool = False) -> dict[int | str, dict[str, Any]]:
    """Answers of a route.

    Args:
        model: Of a 200.
        binary: Whether it may also be JSON with tensors' bytes behind it.
    """
    success: dict[str, Any] = {"model": model}
    if binary:
        success["content"] = {_OCTETS: {"schema": {"type": "string", "format": "binary"}}}
    return {200: success, **_ERRORS}


def _body(content: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": content}}


_INFER_EXAMPLE = {
    "id": "42",
    "inputs": [
        {"name": "image_bytes", "shape": [1], "datatype": "BYTES", "data": ["(bytes, as UTF-8)"]}
    ],
    "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
}

_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}

_INFER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"enum": ["image", "image_bytes"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "datatype": {"enum": ["FP32", "BYTES"]},
                    "parameters": _PARAMETERS,
                    "data": {"type": "array"},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"enum": ["logits", "probabilities"]},
                    "parameters": _PARAMETERS,
                },
            },
        },
    },
}

INFER_BODY: dict[str, Any] = _body(
    {
        _JSON: {"schema": _INFER_SCHEMA, "example": _INFER_EXAMPLE},
        _OCTETS: {"schema": {"type": "string", "format": "binary"}},
    }
) | {
    "parameters": [
        {
            "name": "inference-header-content-length",
            "in": "header",
            "description": "length of the JSON, where tensors' bytes follow it",
            "schema": {"type": "integer", "minimum": 0},
        }
    ]
}
"""Of inference: JSON, or JSON with bytes behind it."""

INDEX_BODY: dict[str, Any] = _body(
    {
        _JSON: {
            "schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
            "example": {"ready": True},
        }
    },
    required=False,
)

_VERSION_QUERY = {
    "name": "version",
    "in": "query",
    "description": "as the store or as the protocol names it; the current one if it is left out",
    "schema": {"type": "string"},
}

LOAD_BODY: dict[str, Any] = _body(
    {
        _JSON: {
            "schema": {
                "type": "object",
                "properties": {
                    "parameters": {
                        "type": "object",
                        "properties": {"unload_dependents": {"type": "boolean"}},
                    }
                },
            },
            "example": {},
        }
    },
    required=False,
) | {"parameters": [_VERSION_QUERY]}

PREDICT: dict[str, Any] = _body(
    {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "additionalProperties": {"type": "string", "format": "binary"},
            }
        },
    }
) | {
    "parameters": [
        _VERSION_QUERY,
        {
            "name": "top_k",
            "in": "query",
            "description": "most labels to give of each image",
            "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5},
        },
    ]
}
