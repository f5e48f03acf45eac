"""``/v1``: encoded images in, labels out, for those who speak no inference protocol."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from ..answer_call import answer_call
from ..errors import InputError
from ..protocol.classification import softmax
from ..protocol.datatypes import BYTES, quoted
from ..protocol.infer import IMAGE_BYTES
from ..protocol.model_info import READY
from ..protocol.tensors import InferCall, Tensor, object_array
from ..protocol.version_names import client_name
from ..service import Service
from ..tasks.contract import Answer, ServedVersion, TaskEngine
from . import schemas
from .body import read_body
from .disconnect import answer_while_connected
from .errors import HttpError
from .route_tools import json_response, provenance_headers, query_number, record_of, service_of

MAX_LABELS = 1000
DEFAULT_LABELS = 5
_FORM = "multipart/form-data"
_NS_PER_MS = 1e6

router = APIRouter(tags=["images and labels"])


@router.get("/v1/tasks", name="tasks", responses=schemas.answers(schemas.Tasks))
async def get_tasks(request: Request) -> Response:
    """Every task, its versions, and which of them answers; labels are left to each task's route."""
    service = service_of(request)
    return json_response(await service.read(_tasks, service.engine))


@router.get("/v1/tasks/{task}", name="task", responses=schemas.answers(schemas.Task))
async def get_task(request: Request, task: str) -> Response:
    """A task: its versions, labels and preprocessing."""
    service = service_of(request)
    engine = service.engine
    record_of(request).task = task
    await service.find(task)
    return json_response(_task(engine, engine.versions(task), labels=True))


@router.post(
    "/v1/tasks/{task}/predict",
    name="predict",
    responses=schemas.answers(schemas.Predictions),
    openapi_extra=schemas.PREDICT,
)
async def post_predict(request: Request, task: str) -> Response:
    """The most probable labels of one image, or of every file of a form.

    Send the bytes of a JPEG, PNG or WEBP as they are, or several as ``multipart/form-data``.
    """
    arrived_s, arrived_ns = time.monotonic(), time.perf_counter_ns()
    service, record = service_of(request), record_of(request)
    limits = service.settings.limits
    record.task = task
    top_k = query_number(request, "top_k", DEFAULT_LABELS, most=MAX_LABELS)
    version = request.query_params.get("version", "")
    await service.find(task, version)
    files = await _files(request, await read_body(request, limits), service.engine.max_batch)
    values = object_array([file.data for file in files])
    tensor = Tensor(name=IMAGE_BYTES, datatype=BYTES, shape=values.shape, values=values)
    call = InferCall(model=task, version=version, inputs=(tensor,))
    ask = partial(answer_while_connected, service, request, record)
    plan, answer = await answer_call(service, record, call, arrived_s, ask)
    decode_s = record.step_s("decode") or 0.0
    total_ns = time.perf_counter_ns() - arrived_ns
    return json_response(
        {
            "task": answer.task,
            "version": answer.version,
            "delta_sha256": answer.delta_sha256,
            "request_id": record.request_id,
            "predictions": _predictions(files, answer, plan.served.labels, top_k),
            "batch_size": answer.batch_size,
            "ms": {
                "decode": round(decode_s * 1e3, 3),
                "queue": round(answer.queue_ns / _NS_PER_MS, 3),
                "swap": round(answer.swap_ns / _NS_PER_MS, 3),
                "compute": round(answer.compute_ns / _NS_PER_MS, 3),
                "total": round(total_ns / _NS_PER_MS, 3),
            },
        },
        provenance_headers(answer),
    )


@router.get("/v1/status", name="status", responses=schemas.answers(schemas.Status))
async def get_status(request: Request) -> Response:
    """What is in memory and what waits: for the page, and for people with curl."""
    service = service_of(request)
    return json_response(await service.read(_status, service))


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    data: bytes


class _FormInMemory(MultiPartParser):
    """Nothing of a form goes to disk: the body that it came in is limited already."""

    spool_max_size = 1 << 40


async def _files(request: Request, body: bytes, most: int) -> list[_File]:
    """The images of a body: each file of a form, or the body itself.

    Raises:
        InputError: If there is none, or the form is broken or has other fields.
        HttpError: 415, if it is of a type that holds no image.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == _FORM:
        return await _form(request, body, most)
    if not (media_type.startswith("image/") or media_type in ("", "application/octet-stream")):
        raise HttpError(415, f"content-type must be image/... or {_FORM}, got {quoted(media_type)}")
    if not body:
        raise InputError("the body must be the bytes of an image, it is empty")
    return [_File("", body)]


async def _form(request: Request, body: bytes, most: int) -> list[_File]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _FormInMemory(request.headers, whole(), max_files=most, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InputError(
            f"the form must be whole, with 1 to {most} files and no other field: {error.message}"
        ) from error
    files = []
    for _, field in form.multi_items():
        assert isinstance(field, UploadFile)  # there are no other fields
        files.append(_File(field.filename or "", await field.read()))
        await field.close()
    if not files:
        raise InputError(f"the form must have 1 to {most} files, it has none")
    return files


def _predictions(
    files: Sequence[_File], answer: Answer, labels: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    found = []
    for file, row in zip(files, softmax(answer.logits), strict=True):
        best = np.argsort(-row, kind="stable")[:top_k]
        found.append(
            {
                "file": file.name,
                "top": [
                    {
                        "label": labels[index],
                        "index": int(index),
                        "probability": round(float(row[index]), 6),
                    }
                    for index in best
                ],
            }
        )
    return found


def _tasks(engine: TaskEngine) -> dict[str, Any]:
    by_task: dict[str, list[ServedVersion]] = {}
    for version in engine.versions():
        by_task.setdefault(version.task, []).append(version)
    return {"tasks": [_task(engine, versions, labels=False) for versions in by_task.values()]}


def _task(engine: TaskEngine, versions: Sequence[ServedVersion], *, labels: bool) -> dict[str, Any]:
    """A task by its current version, or its newest where none is current."""
    shown = next((each for each in versions if each.is_current), versions[-1])
    record: dict[str, Any] = {
        "task": shown.task,
        "current": shown.version if shown.is_current else None,
        "ready": shown.is_current and shown.state == READY,
        "backbone": shown.backbone,
        "n_classes": len(shown.labels),
        "versions": [_version(engine, each) for each in versions],
    }
    if labels:
        record["labels"] = list(shown.labels)
        record["input_shape"] = list(shown.input_shape)
    return record


def _version(engine: TaskEngine, served: ServedVersion) -> dict[str, Any]:
    return {
        "version": served.version,
        "shown_as": client_name(engine, served.task, served.version),
        "state": served.state,
        "reason": served.reason,
        "delta_sha256": served.delta_sha256,
        "in_memory": served.in_memory,
        "pinned": served.pinned,
        "size_bytes": served.size_bytes,
        "mixed": served.mixed,
    }


def _status(service: Service) -> dict[str, Any]:
    engine, usage = service.engine, service.engine.usage()
    versions = engine.versions()
    return {
        "ready": engine.ready and not service.draining,
        "tasks": len(engine.tasks()),
        "versions": len(versions),
        "queued_images": usage.queued,
        "in_flight_requests": usage.in_flight,
        "weights_bytes": usage.weights_bytes,
        "budget_bytes": usage.budget_bytes,
        "backbone_bytes": usage.backbone_bytes,
        "swaps": usage.swaps,
        "merge_ms": round(usage.merge_ns / _NS_PER_MS, 3),
        "evictions": usage.evictions,
        "max_batch": engine.max_batch,
        "in_memory": [
            {
                "task": each.task,
                "version": each.version,
                "size_bytes": each.size_bytes,
                "pinned": each.pinned,
                "mixed": each.mixed,
            }
            for each in versions
            if each.in_memory
        ],
    }
