"""Every request passes here: its id, its record, whether it may go on, headers of its answer."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import OverloadedError, ServingError
from ..protocol.tokens import Realm
from ..rate import RateLimit
from ..service import Service
from ..telemetry.request_record import RequestRecord, request_id, traceparent
from .errors import CLIENT_CLOSED, HttpError, error_response
from .site import require_own_site

OPEN = frozenset(
    ("/", "/app.js", "/style.css", "/favicon.ico", "/v2/health/live", "/v2/health/ready")
)
"""What needs no token: probes, and the page's own files, which hold nothing of what is served."""
PROBES = frozenset(("/v2/health/live", "/v2/health/ready"))

_OTHERS_S = "1"
"""When to come back to a server that leaves: another one may be there."""

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Of every answer that has not its own."""


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: What answers.
        service: Of the server.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._open = 0
        settings = service.settings
        self._rate = (
            RateLimit(settings.rate_per_s, settings.rate_burst) if settings.rate_per_s else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = _record_of(scope, headers)
        scope.setdefault("state", {})["record"] = record
        telemetry = self._service.telemetry
        telemetry.started(record)
        self._open += 1
        try:
            await self._answer(scope, headers, record, receive, send)
        finally:
            self._open -= 1
            record.method = getattr(scope.get("route"), "name", record.method)
            telemetry.finished(record)

    async def _answer(
        self, scope: Scope, asked: Headers, record: RequestRecord, receive: Receive, send: Send
    ) -> None:
        started = False

        async def counted_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                record.status = str(message["status"])
                record.failed = message["status"] >= 500
                headers = MutableHeaders(scope=message)
                _add_headers(headers, record)
                if self._service.draining:  # its next request would meet a closed connection
                    headers["connection"] = "close"
            elif message["type"] == "http.response.body":
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        async def counted_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                record.bytes_in += len(message.get("body", b""))
            return message

        try:
            self._require_allowed(scope, asked, record)
            await self._app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            record.status, record.error = str(CLIENT_CLOSED), "the client went"
            if not started:  # nobody reads it, but servers expect an answer
                await Response(status_code=CLIENT_CLOSED)(scope, receive, send)
        except Exception as error:
            record.error = str(error) if isinstance(error, ServingError) else type(error).__name__
            response = error_response(error, record.request_id)
            if started:
                raise  # the connection ends; there is no second status
            await response(scope, receive, counted_send)

    def _require_allowed(self, scope: Scope, headers: Headers, record: RequestRecord) -> None:
        path = scope["path"]
        if path in PROBES:
            return
        if self._open > self._service.settings.max_connections:
            raise OverloadedError("too many requests are under way. Come back later")
        if self._service.draining:
            raise HttpError(503, "the server is leaving", {"retry-after": _OTHERS_S})
        if path in OPEN:
            return
        require_own_site(scope["method"], headers, self._service.settings)
        authorization = headers.get("authorization")
        if self._rate is not None:
            self._rate.take(record.client)
        require_token(self._service, "inference", authorization)


def require_token(service: Service, realm: Realm, authorization: str | None) -> None:
    """Raise unless a request shows the token of what it wants.

    Raises:
        HttpError: 401 without or with a wrong one; 403 where nobody may.
    """
    match service.settings.tokens.verdict(realm, authorization):
        case "allowed":
            return
        case "off":
            raise HttpError(403, "management is off: this server was started without its token")
        case "missing":
            message = f"this needs the {realm} token: authorization: Bearer TOKEN"
        case "wrong":
            message = f"this is not the {realm} token"
    raise HttpError(401, message, {"www-authenticate": f'Bearer realm="{realm}"'})


def _record_of(scope: Scope, headers: Headers) -> RequestRecord:
    client = scope.get("client")
    return RequestRecord(
        protocol="http",
        request_id=request_id(headers.get("x-request-id", "")),
        path=f"{scope['method']} {scope['path'][:256]}",
        client=client[0] if client else "",
        traceparent=traceparent(headers.get("traceparent", "")),
    )


def _add_headers(headers: MutableHeaders, record: RequestRecord) -> None:
    headers["x-request-id"] = record.request_id
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
