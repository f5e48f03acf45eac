"""What the routes share: the service and the record of a request, names in answers, JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..protocol.model_info import READY
from ..service import Service
from ..tasks.contract import Answer, ServedVersion
from ..telemetry.request_record import RequestRecord
from .errors import HttpError
from .gate import require_token


def service_of(request: Request) -> Service:
    """The server that a request came to."""
    service: Service = request.app.state.service
    return service


def record_of(request: Request) -> RequestRecord:
    """What is known of a request so far."""
    record: RequestRecord = request.scope["state"]["record"]
    return record


def require_management(request: Request) -> None:
    """A dependency of every route that changes what is served.

    Raises:
        HttpError: If the request does not show the management token, or nobody may.
    """
    require_token(service_of(request), "management", request.headers.get("authorization"))


def json_response(content: Any, headers: dict[str, str] | None = None) -> Response:
    """An answer whose content is plain already; checked by nobody but the tests."""
    body = json.dumps(content, separators=(",", ":"))
    return Response(body, headers=headers, media_type="application/json")


def provenance_headers(answered: Answer | ServedVersion) -> dict[str, str]:
    """Which delta answered, for clients that do not read bodies."""
    return {
        "glora-task": answered.task,
        "glora-version": answered.version,
        "glora-delta": answered.delta_sha256,
    }


def state_of(served: ServedVersion) -> str:
    """``READY``, or another state with its reason."""
    if served.state == READY or not served.reason:
        return served.state
    return f"{served.state}: {served.reason}"


def query_number(request: Request, name: str, default: int, *, most: int) -> int:
    """A whole number of the query, from 1.

    Raises:
        HttpError: 400, if it is none, or more than ``most``.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise HttpError(400, f"{name} must be an integer of 1 to {most}, got {text[:32]!a}")
    return int(text)
