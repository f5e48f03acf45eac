"""The record of each call: filled while it is answered, counted and logged when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from urllib.parse import unquote

from grpc import StatusCode, aio

from ..telemetry.request_record import RequestRecord, request_id, traceparent
from ..telemetry.telemetry import Telemetry
from .errors import OURS, Status, status_of

_current: ContextVar[RequestRecord] = ContextVar("record")


class EndedError(Exception):
    """A call met an error, which its record has.

    Args:
        status: That the call ends with.
    """

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


def new_record(method: str, path: str, peer: str, metadata: Mapping[str, str]) -> RequestRecord:
    """The record of a call that has come.

    Args:
        method: Of a fixed set.
        path: As the client asked.
        peer: As gRPC names the client.
        metadata: Of the call.
    """
    return RequestRecord(
        protocol="grpc",
        method=method,
        path=path[:256],
        request_id=request_id(metadata.get("x-request-id", "")),
        client=client_of(peer),
        traceparent=traceparent(metadata.get("traceparent", "")),
    )


def client_of(peer: str) -> str:
    """The address of a peer, without its port.

    >>> client_of("ipv4:127.0.0.1:40122"), client_of("ipv6:%5B::1%5D:40122"), client_of("unix:")
    ('127.0.0.1', '::1', 'unix:')
    """
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else peer


def current_record() -> RequestRecord:
    """The record of the call that is being answered."""
    return _current.get()


def set_current(record: RequestRecord) -> None:
    """Make a record the one of this call, and of the tasks that it starts."""
    _current.set(record)


@asynccontextmanager
async def recorded(telemetry: Telemetry, record: RequestRecord) -> AsyncIterator[None]:
    """Count, log and trace what is done within as one call.

    Raises:
        EndedError: From any error within.
    """
    set_current(record)
    telemetry.started(record)
    try:
        yield
        record.status = StatusCode.OK.name
    except asyncio.CancelledError:
        record.status = StatusCode.CANCELLED.name
        record.error = "the client went, or its deadline passed"
        raise
    except aio.AbortError:
        record.status = StatusCode.NOT_FOUND.name  # health alone aborts: of an unknown service
        raise
    except Exception as error:
        status = status_of(error, record.request_id)
        record.status, record.failed = status.code.name, status.code in OURS
        record.error = status.message if status.code != StatusCode.INTERNAL else repr(type(error))
        raise EndedError(status) from error
    finally:
        telemetry.finished(record)
