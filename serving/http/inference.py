"""Routes of the Open Inference Protocol: what is served, whether it is ready, and inference."""

from __future__ import annotations

import time
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..answer_call import answer_call
from ..protocol.infer import InferReply, to_reply
from ..protocol.model_info import (
    is_ready,
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
)
from ..protocol.tensors import InferCall
from . import schemas
from .binary_tensors import EncodedReply, header_length, read_call, wants_binary, write_reply
from .body import accepted_encoding, compress, read_body
from .disconnect import answer_while_connected
from .errors import error_body
from .route_tools import json_response, provenance_headers, record_of, service_of

JSON_LENGTH = "inference-header-content-length"

_LONG_JSON = 64 << 10
"""Bytes of JSON that are read in another thread: it takes about a millisecond."""
_LONG_BODY = 64 << 10
"""Bytes of an answer that are compressed in another thread."""

router = APIRouter(tags=["inference protocol"])


@router.get("/v2", name="server_metadata", responses=schemas.answers(schemas.ServerMetadata))
async def get_server(request: Request) -> Response:
    """Name, version and extensions of this server."""
    return json_response(server_metadata())


@router.get("/v2/health/live", name="live", response_class=Response, responses=schemas.EMPTY)
async def get_live(request: Request) -> Response:
    """Whether the process answers at all. Needs no token."""
    return Response()


@router.get("/v2/health/ready", name="ready", response_class=Response, responses=schemas.EMPTY)
async def get_ready(request: Request) -> Response:
    """Whether requests are taken: not before the start is done, nor while leaving. No token."""
    service = service_of(request)
    if service.draining:
        return error_body(503, "the server is leaving")
    if not service.engine.ready:
        return error_body(400, "the server is not ready")
    return Response()


@router.get(
    "/v2/models/stats", name="statistics", responses=schemas.answers(schemas.ModelStatistics)
)
async def get_all_statistics(request: Request) -> Response:
    """Counts of every version of every model since the start."""
    service = service_of(request)
    return json_response(await service.read(model_statistics, service.engine))


@router.get(
    "/v2/models/{model}", name="model_metadata", responses=schemas.answers(schemas.ModelMetadata)
)
@router.get(
    "/v2/models/{model}/versions/{version}",
    name="model_metadata",
    responses=schemas.answers(schemas.ModelMetadata),
)
async def get_model(request: Request, model: str, version: str = "") -> Response:
    """Inputs, outputs and versions of a model."""
    record_of(request).task = model
    service = service_of(request)
    await service.find(model, version)
    return json_response(model_metadata(service.engine, model, version))


@router.get(
    "/v2/models/{model}/ready", name="model_ready", response_class=Response, responses=schemas.EMPTY
)
@router.get(
    "/v2/models/{model}/versions/{version}/ready",
    name="model_ready",
    response_class=Response,
    responses=schemas.EMPTY,
)
async def get_model_ready(request: Request, model: str, version: str = "") -> Response:
    """Whether a model, or one version of it, answers."""
    record_of(request).task = model
    if not is_ready(service_of(request).engine, model, version):
        return error_body(400, "Model version not ready")
    return Response()


@router.get(
    "/v2/models/{model}/config", name="model_config", responses=schemas.answers(schemas.ModelConfig)
)
@router.get(
    "/v2/models/{model}/versions/{version}/config",
    name="model_config",
    responses=schemas.answers(schemas.ModelConfig),
)
async def get_config(request: Request, model: str, version: str = "") -> Response:
    """The configuration that a Triton server would have for this model."""
    record_of(request).task = model
    service = service_of(request)
    await service.find(model, version)
    return json_response(model_config(service.engine, model, version))


@router.get(
    "/v2/models/{model}/stats",
    name="statistics",
    responses=schemas.answers(schemas.ModelStatistics),
)
@router.get(
    "/v2/models/{model}/versions/{version}/stats",
    name="statistics",
    responses=schemas.answers(schemas.ModelStatistics),
)
async def get_statistics(request: Request, model: str, version: str = "") -> Response:
    """Counts of a model's versions since the start."""
    service = service_of(request)
    record_of(request).task = model
    return json_response(await service.read(model_statistics, service.engine, model, version))


@router.post(
    "/v2/models/{model}/infer",
    name="infer",
    responses=schemas.answers(schemas.InferAnswer, binary=True),
    openapi_extra=schemas.INFER_BODY,
)
@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    name="infer",
    responses=schemas.answers(schemas.InferAnswer, binary=True),
    openapi_extra=schemas.INFER_BODY,
)
async def post_infer(request: Request, model: str, version: str = "") -> Response:
    """Logits, probabilities or classes of preprocessed or encoded images."""
    arrived_s = time.monotonic()
    service, record = service_of(request), record_of(request)
    limits = service.settings.limits
    record.task = model
    served = await service.find(model, version)
    body = await read_body(request, limits)
    json_bytes = header_length(request.headers.get(JSON_LENGTH), len(body))

    def read() -> InferCall:
        return read_call(
            model,
            version,
            body,
            json_bytes,
            raw_shape=served.input_shape,
            max_depth=limits.max_json_depth,
        )

    is_long = (len(body) if json_bytes is None else json_bytes) > _LONG_JSON
    call = await service.decode(record, read) if is_long else read()
    record.call_id = call.id
    ask = partial(answer_while_connected, service, request, record)
    plan, answer = await answer_call(service, record, call, arrived_s, ask)
    reply = to_reply(service.engine, plan, answer)
    encoded = write_reply(reply, _binary(call, reply, json_bytes))
    return await _response(request, encoded, reply)


def _binary(call: InferCall, reply: InferReply, json_bytes: int | None) -> list[bool]:
    """Of each output, whether it goes out as bytes."""
    if call.outputs:
        return [output.binary for output in call.outputs]
    return [wants_binary(call, json_bytes)] * len(reply.outputs)


async def _response(request: Request, encoded: EncodedReply, reply: InferReply) -> Response:
    headers = provenance_headers(reply.answer)
    media_type = "application/json"
    if encoded.json_bytes is not None:
        media_type = "application/octet-stream"
        headers[JSON_LENGTH] = str(encoded.json_bytes)
    body = encoded.body
    encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
    if encoding is not None:
        headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
        if len(body) > _LONG_BODY:
            body = await service_of(request).decode(record_of(request), compress, body, encoding)
        else:
            body = compress(body, encoding)
    return Response(body, headers=headers, media_type=media_type)
