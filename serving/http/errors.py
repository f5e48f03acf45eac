"""What went wrong becomes a status and ``{"error": ...}``: here, and nowhere else."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping

from starlette.responses import Response

from glora_deploy.errors import GloraDeployError

from ..errors import (
    DeadlineError,
    InputError,
    LoadError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnavailableError,
    UnknownTaskError,
)
from ..rate import RateLimitError

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""Of a request whose client went before its answer: nobody sees it but the log."""

STATUS: tuple[tuple[type[ServingError], int], ...] = (
    (UnknownTaskError, 404),
    (TooLargeError, 413),
    (InputError, 400),
    (LoadError, 400),
    (RateLimitError, 429),
    (RateLimitError, 429),
    (OverloadedError, 503),
    (DeadlineError, 503),
    (UnavailableError, 503),
)
"""The first that fits counts; anything else is our own fault, 500."""


class HttpError(ServingError):
    """An error that only HTTP has.

    Args:
        status: Of the answer.
        message: One line.
        headers: Of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def status_of(error: Exception) -> int:
    """The status that an error is answered with."""
    if isinstance(error, HttpError):
        return error.status
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_response(error: Exception, request_id: str = "") -> Response:
    """The answer to a request that met this error.

    The text of a ServingError is meant for clients. Any other may name files: it is logged, and
    the client gets the request's id to ask about.
    """
    status = status_of(error)
    headers: dict[str, str] = dict(error.headers) if isinstance(error, HttpError) else {}
    if isinstance(error, OverloadedError | RateLimitError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, ServingError):
        return error_body(status, str(error), headers)
    known = isinstance(error, GloraDeployError)
    logger.error("request %s failed: %s", request_id, error, exc_info=None if known else error)
    return error_body(status, f"internal error in request {request_id}; see the server's log")


def error_body(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A status with the one body that the protocol has for errors."""
    return Response(
        json.dumps({"error": message}),
        status,
        headers=dict(headers or {}),
        media_type="application/json",
    )
