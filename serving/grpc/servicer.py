"""The calls of the inference protocol, answered by the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc

from ..answer_call import answer_call
from ..errors import InputError
from ..protocol.datatypes import quoted
from ..protocol.infer import to_reply
from ..protocol.model_info import (
    is_ready,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from ..protocol.version_names import require_name, stored_name
from ..service import Service
from ..tasks.contract import Answer, InferRequest
from .errors import GrpcError
from .messages import has_many_values, read_call, read_parameters, write_reply
from .records import EndedError, current_record, recorded

_MANY_VALUES = 64 << 10
"""Bytes of listed values that are read in another thread: it takes about a millisecond."""
_MOST_AHEAD = 16
"""Messages of one stream that are taken before the first of them is answered."""
_FINAL = "triton_final_response"


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # no types
    """``inference.GRPCInferenceService``; what is not here is answered UNIMPLEMENTED.

    Args:
        service: The engine as all transports use it.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._engine = service, service.engine

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether the process answers at all."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether requests are taken."""
        ready = self._engine.ready and not self._service.draining
        return pb.ServerReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version and extensions of this server."""
        metadata = server_metadata()
        return pb.ServerMetadataResponse(**metadata)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model, or one version of it, answers."""
        current_record().task = request.name
        return pb.ModelReadyResponse(ready=is_ready(self._engine, request.name, request.version))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs, outputs and versions of a model."""
        current_record().task = request.name
        await self._service.find(request.name, request.version)
        found = model_metadata(self._engine, request.name, request.version)
        return ParseDict(found, pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """The configuration that a Triton server would have for this model."""
        current_record().task = request.name
        await self._service.find(request.name, request.version)
        found = model_config(self._engine, request.name, request.version)
        return ParseDict({"config": found}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Counts of a version, of a model, or of all."""
        current_record().task = request.name
        found = await self._service.read(
            model_statistics, self._engine, request.name, request.version
        )
        return ParseDict(found, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """Every version of every model, and its state."""
        _require_no_repository(request)
        found = await self._service.read(
            repository_index, self._engine, ready=request.ready, absent=self._service.absent()
        )
        return ParseDict({"models": found}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Read a task anew and let it answer; with the parameter ``version``, that version."""
        version = self._named_version(request)
        await self._service.bring(request.model_name)
        served = await self._service.manage(self._engine.load, request.model_name, version)
        record = current_record()
        record.version, record.delta_sha256 = served.version, served.delta_sha256
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Take a task out, or with the parameter ``version`` one version of it."""
        version = self._named_version(request)
        await self._service.manage(self._engine.unload, request.model_name, version)
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Logits, probabilities or classes of preprocessed or encoded images."""
        return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        """As ``ModelInfer`` for each message; the answers come in the order of the messages."""
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        room = asyncio.Semaphore(_MOST_AHEAD)
        tasks: set[asyncio.Task[Any]] = set()

        async def take() -> None:
            try:
                async for request in request_iterator:
                    await room.acquire()
                    task = asyncio.create_task(self._streamed(request, context))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    answers.put_nowait(task)
            finally:
                answers.put_nowait(None)

        taking = asyncio.create_task(take())
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                room.release()
            await taking
        finally:
            for task in (taking, *tasks):
                task.cancel()

    async def _streamed(self, request: Any, context: Any) -> Any:
        """The answer to one message of a stream; an error is one too, and the stream goes on."""
        stream = current_record()
        record = replace(stream, steps=[], started_ns=time.time_ns(), bytes_in=request.ByteSize())
        response = pb.ModelStreamInferResponse()
        try:
            async with recorded(self._service.telemetry, record):
                answer = await self._infer(request, context.time_remaining())
                response.infer_response.CopyFrom(answer)
                response.infer_response.parameters[_FINAL].bool_param = True
                record.bytes_out = response.ByteSize()
        except EndedError as ended:
            response.error_message = ended.status.message
            response.infer_response.id = request.id
        return response

    async def _infer(self, request: Any, remaining_s: float | None) -> Any:
        arrived_s = time.monotonic()
        service, engine, record = self._service, self._engine, current_record()
        record.task, record.call_id = request.model_name, request.id
        patience_s = math.inf if remaining_s is None else remaining_s
        await service.find(request.model_name, request.model_version, patience_s)
        if has_many_values(request, _MANY_VALUES):
            call = await service.decode(record, read_call, request)
        else:
            call = read_call(request)
        until_s = math.inf if remaining_s is None else arrived_s + remaining_s

        async def ask(asked: InferRequest) -> Answer:
            deadline_s = min(asked.deadline_s or until_s, until_s)
            asked = replace(asked, deadline_s=deadline_s)
            return await service.answer(record, asked)  # gRPC cancels it when the client goes

        plan, answer = await answer_call(service, record, call, arrived_s, ask)
        return write_reply(to_reply(engine, plan, answer))

    def _named_version(self, request: Any) -> str | None:
        """The version that a load or unload names, as the store does; None if it names none.

        Raises:
            InputError: If it would change a model: its configuration, or files of it.
        """
        _require_no_repository(request)
        require_name("task", request.model_name)
        current_record().task = request.model_name
        parameters = read_parameters(request.parameters)
        parameters.pop("unload_dependents", None)  # nothing here depends on another model
        version = parameters.pop("version", "")
        if "config" in parameters or any(key.startswith("file:") for key in parameters):
            raise InputError("a model's configuration and files must come from the store alone")
        if parameters:
            raise InputError(f"parameters must be version alone, got {quoted(min(parameters))}")
        if not isinstance(version, str):
            raise InputError("parameter version must be a string")
        return stored_name(self._engine, request.model_name, version) if version else None


def _require_no_repository(request: Any) -> None:
    if request.repository_name:
        raise GrpcError(StatusCode.UNIMPLEMENTED, "repository_name must be empty: there is one")
