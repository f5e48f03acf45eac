"""Routes that show and change what is served: the model-repository extension, pins, prefetches.

All but the index need the management token. Nothing that a client sends is opened as a path or
becomes part of a model: what a task is, the store alone says.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from ..errors import InputError
from ..protocol.model_info import repository_index
from ..protocol.version_names import require_name, stored_name
from ..tasks.contract import ServedVersion
from . import schemas
from .binary_tensors import read_json
from .body import read_body
from .errors import HttpError
from .route_tools import (
    json_response,
    provenance_headers,
    record_of,
    require_management,
    service_of,
)

_IGNORED = "unload_dependents"
"""Every client of Triton's sends it; nothing here depends on another model."""

router = APIRouter(tags=["model repository"])
managed = APIRouter(tags=["model repository"], dependencies=[Depends(require_management)])


@router.post(
    "/v2/repository/index",
    name="repository_index",
    responses=schemas.answers(schemas.RepositoryIndex),
    openapi_extra=schemas.INDEX_BODY,
)
async def post_index(request: Request) -> Response:
    """Every version of every model, and its state; an empty body lists all."""
    service = service_of(request)
    limits = service.settings.limits
    body = await read_body(request, limits)
    asked = read_json(body, max_depth=limits.max_json_depth, empty={})
    ready = asked.get("ready", False)
    if not isinstance(ready, bool):
        raise InputError("ready must be true or false")
    found = await service.read(
        repository_index, service.engine, ready=ready, absent=service.absent()
    )
    return json_response(found)


@managed.post(
    "/v2/repository/models/{model}/load",
    name="load",
    response_class=Response,
    responses=schemas.EMPTY,
    openapi_extra=schemas.LOAD_BODY,
)
async def post_load(request: Request, model: str) -> Response:
    """Read a task anew from the store and let it answer; ``?version=`` lets that version answer.

    The same call with an older version is a rollback. A version that is refused changes nothing.
    """
    await _require_no_parameters(request)
    return _now_serving(await _load(request, model))


@managed.post(
    "/v2/repository/models/{model}/unload",
    name="unload",
    response_class=Response,
    responses=schemas.EMPTY,
    openapi_extra=schemas.LOAD_BODY,
)
async def post_unload(request: Request, model: str) -> Response:
    """Take a task out, or with ``?version=`` one version; what was asked before is answered."""
    await _require_no_parameters(request)
    service, version = service_of(request), _version(request, model)
    await service.manage(service.engine.unload, model, version)
    return Response()


@managed.post(
    "/v1/tasks/{task}/prefetch", name="prefetch", response_class=Response, responses=schemas.EMPTY
)
async def post_prefetch(request: Request, task: str) -> Response:
    """Have the merged weights in memory before they are asked for."""
    service, version = service_of(request), _version(request, task)
    await service.bring(task)
    await service.manage(service.engine.prefetch, task, version)
    return Response()


@managed.put("/v1/tasks/{task}/pin", name="pin", response_class=Response, responses=schemas.EMPTY)
async def put_pin(request: Request, task: str) -> Response:
    """Keep the weights of a task in memory whatever else is asked for."""
    service = service_of(request)
    _require_task(request, task)
    await service.bring(task)
    await service.manage(service.engine.pin, task, pinned=True)
    return Response()


@managed.delete(
    "/v1/tasks/{task}/pin", name="unpin", response_class=Response, responses=schemas.EMPTY
)
async def delete_pin(request: Request, task: str) -> Response:
    """Let the weights of a task go when others need their place."""
    service = service_of(request)
    _require_task(request, task)
    await service.manage(service.engine.pin, task, pinned=False)
    return Response()


async def _load(request: Request, model: str) -> ServedVersion:
    service, version = service_of(request), _version(request, model)
    await service.bring(model)
    return await service.manage(service.engine.load, model, version)


def _now_serving(served: ServedVersion) -> Response:
    return Response(headers=provenance_headers(served))


def _version(request: Request, task: str) -> str | None:
    """The version of the query, as the store names it; None if there is none."""
    _require_task(request, task)
    asked = request.query_params.get("version")
    return stored_name(service_of(request).engine, task, asked) if asked else None


def _require_task(request: Request, task: str) -> None:
    require_name("task", task)
    record_of(request).task = task


async def _require_no_parameters(request: Request) -> None:
    """Refuse what would change a model: its configuration, or files of it."""
    limits = service_of(request).settings.limits
    body = await read_body(request, limits)
    asked = read_json(body, max_depth=limits.max_json_depth, empty={})
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError("parameters must be an object")
    if "config" in parameters or any(key.startswith("file:") for key in parameters):
        raise InputError("a model's configuration and files must come from the store alone")
    if unknown := sorted(set(parameters) - {_IGNORED}):
        raise HttpError(400, f"parameters must be {_IGNORED} alone, got {unknown[0][:64]!a}")
