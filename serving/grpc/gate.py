"""Every call passes here: its record, whether it may go on, the status that it ends with."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpc import StatusCode, aio
from tritonclient.grpc import service_pb2 as pb

from ..errors import InputError, UnavailableError
from ..protocol.tokens import Realm
from ..rate import RateLimit
from ..service import Service
from ..telemetry.request_record import RequestRecord
from .errors import GrpcError, Status, status_of
from .records import EndedError, new_record, recorded, set_current

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE: str = _DESCRIPTOR.full_name
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
PROBES = frozenset(
    f"/{service}/{name}"
    for service, name in (
        (SERVICE, "ServerLive"),
        (SERVICE, "ServerReady"),
        (HEALTH, "Check"),
        (HEALTH, "Watch"),
    )
)
"""What needs no token, and is answered while the server leaves."""
MANAGED = frozenset(f"/{SERVICE}/RepositoryModel{verb}" for verb in ("Load", "Unload"))
"""What changes what is served."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What is known of a call before its message is read."""

    path: str
    metadata: dict[str, str]

    def record(self, context: Any) -> RequestRecord:
        return new_record(self._method(), self.path, context.peer(), self.metadata)

    def _method(self) -> str:
        """Of a fixed set, whatever the client asks for."""
        service, _, name = self.path[1:].partition("/")
        if service == SERVICE and name in _DESCRIPTOR.methods_by_name:
            return name
        return {HEALTH: "Health", REFLECTION: "ServerReflection"}.get(service, "unknown")


class Gate(aio.ServerInterceptor):  # type: ignore[misc] # grpc ships no types
    """Interceptor of every service of the server.

    Args:
        service: The engine as all transports use it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        settings = service.settings
        self._rate = (
            RateLimit(settings.rate_per_s, settings.rate_burst) if settings.rate_per_s else None
        )

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Put the gate around what is to answer a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC itself answers UNIMPLEMENTED
        call = _Call(
            handler_call_details.method,
            {
                key: value
                for key, value in handler_call_details.invocation_metadata or ()
                if isinstance(value, str)
            },
        )
        # Messages are read below: of one that cannot be, gRPC would log a traceback.
        read, codecs = handler.request_deserializer, (None, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(call, handler.unary_unary, read), *codecs
            )
        if handler.unary_stream:
            behaviour = handler.unary_stream
            return grpc.unary_stream_rpc_method_handler(
                self._stream(call, lambda raw, context: behaviour(_message(read, raw), context)),
                *codecs,
            )
        behaviour = handler.stream_stream
        return grpc.stream_stream_rpc_method_handler(
            self._stream(call, lambda raws, context: behaviour(_messages(read, raws), context)),
            *codecs,
        )

    def _unary(
        self, call: _Call, behaviour: Callable[[Any, Any], Any], read: Callable[[bytes], Any]
    ) -> Callable[..., Any]:
        async def answer(raw: bytes, context: Any) -> Any:
            record = call.record(context)
            record.bytes_in = len(raw)
            try:
                async with recorded(self._service.telemetry, record):
                    self._require_allowed(call, record)
                    response = behaviour(_message(read, raw), context)
                    if inspect.isawaitable(response):
                        response = await response
                    record.bytes_out = response.ByteSize()
            except EndedError as ended:
                await _abort(context, record, ended.status)
            await context.send_initial_metadata(_metadata(record))
            return response

        return answer

    def _stream(self, call: _Call, behaviour: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        """A stream that is let through has no record: each of its messages has."""

        async def answer(requests: Any, context: Any) -> None:
            record = call.record(context)
            try:
                self._require_allowed(call, record)
            except Exception as refused:
                try:
                    async with recorded(self._service.telemetry, record):
                        raise refused
                except EndedError as ended:
                    await _abort(context, record, ended.status)
            set_current(record)
            await context.send_initial_metadata(_metadata(record))
            try:
                responses = behaviour(requests, context)
                if inspect.isasyncgen(responses):
                    async for response in responses:
                        await context.write(response)
                else:
                    await responses
            except InputError as error:  # a message that cannot be read
                await _abort(context, record, status_of(error))

        return answer

    def _require_allowed(self, call: _Call, record: RequestRecord) -> None:
        if call.path in PROBES:
            return
        if self._service.draining:
            raise UnavailableError("the server is leaving")
        if self._rate is not None:
            self._rate.take(record.client)
        authorization = call.metadata.get("authorization")
        self._require_token("inference", authorization)
        if call.path in MANAGED:
            self._require_token("management", authorization)

    def _require_token(self, realm: Realm, authorization: str | None) -> None:
        match self._service.settings.tokens.verdict(realm, authorization):
            case "allowed":
                return
            case "off":
                raise GrpcError(
                    StatusCode.PERMISSION_DENIED,
                    "management is off: this server was started without its token",
                )
            case "missing":
                message = f"this needs the {realm} token, as metadata: authorization: Bearer TOKEN"
            case "wrong":
                message = f"this is not the {realm} token"
        raise GrpcError(StatusCode.UNAUTHENTICATED, message)


def _message(read: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return read(raw)
    except DecodeError as error:
        raise InputError("the message must be of the type that this call takes") from error


async def _messages(read: Callable[[bytes], Any], raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield _message(read, raw)


def _metadata(record: RequestRecord) -> tuple[tuple[str, str], ...]:
    """Which delta answered, for clients that do not read messages; and the call's id."""
    found = [("x-request-id", record.request_id)]
    if record.delta_sha256:
        found += [
            ("glora-task", record.task),
            ("glora-version", record.version),
            ("glora-delta", record.delta_sha256),
        ]
    return tuple(found)


async def _abort(context: Any, record: RequestRecord, status: Status) -> NoReturn:
    metadata = (("x-request-id", record.request_id), *status.metadata)
    await context.abort(status.code, status.message, metadata)
    raise AssertionError("abort raises")
