"""What went wrong becomes a status code of gRPC: here, and nowhere else."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from grpc import StatusCode

from glora_deploy.errors import GloraDeployError

from ..errors import (
    DeadlineError,
    InputError,
    LoadError,
    OverloadedError,
    ServingError,
    UnavailableError,
    UnknownTaskError,
)
from ..rate import RateLimitError

logger = logging.getLogger(__name__)

CODES: tuple[tuple[type[ServingError], StatusCode], ...] = (
    (UnknownTaskError, StatusCode.NOT_FOUND),
    (InputError, StatusCode.INVALID_ARGUMENT),
    (LoadError, StatusCode.INVALID_ARGUMENT),
    (RateLimitError, StatusCode.RESOURCE_EXHAUSTED),
    (OverloadedError, StatusCode.UNAVAILABLE),
    (UnavailableError, StatusCode.UNAVAILABLE),
    (DeadlineError, StatusCode.DEADLINE_EXCEEDED),
)
"""The first that fits counts; anything else is our own fault, INTERNAL."""

OURS = frozenset(
    (
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
    )
)
"""Codes of requests that were right and got no answer."""

PUSHBACK = "grpc-retry-pushback-ms"
"""Metadata that tells gRPC's own retries when to come back (gRFC A6)."""


class GrpcError(ServingError):
    """An error that only gRPC has.

    Args:
        code: That the call ends with.
        message: One line.
    """

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends."""

    code: StatusCode
    message: str
    metadata: tuple[tuple[str, str], ...] = ()
    """Sent behind the answer."""


def status_of(error: Exception, request_id: str = "") -> Status:
    """How a call ends that met this error.

    The text of a ServingError is meant for clients. Any other may name files: it is logged, and
    the client gets the call's id to ask about.
    """
    if isinstance(error, GrpcError):
        return Status(error.code, str(error))
    if isinstance(error, ServingError):
        code = next((code for kind, code in CODES if isinstance(error, kind)), StatusCode.INTERNAL)
        return Status(code, str(error), _pushback(error))
    if isinstance(error, NotImplementedError):  # as the servicer's base answers
        return Status(StatusCode.UNIMPLEMENTED, "this server does not offer this call")
    known = isinstance(error, GloraDeployError)
    logger.error("request %s failed: %s", request_id, error, exc_info=None if known else error)
    message = f"internal error in request {request_id}; see the server's log"
    return Status(StatusCode.INTERNAL, message)


def _pushback(error: ServingError) -> tuple[tuple[str, str], ...]:
    if isinstance(error, OverloadedError | RateLimitError):
        return ((PUSHBACK, str(math.ceil(error.retry_after_s * 1000))),)
    return ()
