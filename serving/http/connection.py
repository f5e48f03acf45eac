"""One connection: how long its client may take for each part, and how many there may be.

uvicorn closes a connection that is idle after an answer, and nothing else: a client that never
sends the end of its headers, or never takes its answer, would hold its place for ever. What a
client may take for a body is bounded where the body is read, so that it is told.
"""

from __future__ import annotations

import json
import logging
from asyncio import TimerHandle, Transport
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..settings import ServerSettings

logger = logging.getLogger(__name__)

LINGER_S = 0.3
"""How long an idle connection stays when the server leaves: a request may be on its way to it."""

RESERVED = 64
"""Connections beyond the requests that may be under way: for probes, and to say that it is full."""


class Wait(Enum):
    """What a connection waits for."""

    HEADERS = auto()
    """Of a request."""
    NEXT = auto()
    """Another request after an answer: uvicorn has a time of its own for that."""
    ANSWER = auto()
    """Ours; or the body, which whoever reads it waits for."""
    REST = auto()
    """Of a body that is answered already: a client may read only after it wrote all."""
    TAKING = auto()
    """The client takes the answer."""


_UNBOUND = (Wait.NEXT, Wait.ANSWER)
"""Waits that are bounded elsewhere."""


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with an end to every wait.

    Args:
        settings: Of the server.
        uvicorns: What uvicorn makes a protocol with.
    """

    def __init__(self, settings: ServerSettings, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = settings.limits
        self._most = settings.max_connections + RESERVED
        self._timer: TimerHandle | None = None
        self._wait = Wait.ANSWER
        self._of: object = None
        """The request that the wait is about."""
        self.since_s = 0.0
        """When the wait began, by the loop's clock."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Take a connection; where there are too many, instead of the one that is idle longest."""
        super().connection_made(transport)
        if len(self.connections) > self._most and not self._end_an_idle_one():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections. Come back later")
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request, once the answer to this one is written."""
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        """End once what is under way is answered, or nothing comes for a moment."""
        # Not is_idle: of an answer that was taken nobody is told.
        if self._what_now() in (Wait.HEADERS, Wait.NEXT):
            self.loop.call_later(LINGER_S, self._end)
        else:
            super().shutdown()

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, "this must be a request of HTTP/1.1")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered as if it had not asked for an upgrade."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost but time if it ends."""
        return self._wait in (Wait.HEADERS, Wait.NEXT) and not self.transport.is_closing()

    def _end_an_idle_one(self) -> bool:
        idle = [each for each in self.connections if isinstance(each, Connection) and each.is_idle]
        if idle:
            min(idle, key=lambda each: each.since_s).transport.abort()
        return bool(idle)

    def _watch(self) -> None:
        """Count the time anew if the connection has begun to wait for something else."""
        wait = self._what_now()
        if (wait, self.cycle) == (self._wait, self._of) and self._timer is not None:
            return
        self._unwatch()
        self._wait, self._of, self.since_s = wait, self.cycle, self.loop.time()
        if wait not in _UNBOUND:
            unsent = self.transport.get_write_buffer_size()
            self._timer = self.loop.call_later(self._limits.may_take_s(unsent), self._too_long)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _what_now(self) -> Wait:
        if self.cycle is not None and not self.cycle.response_complete:
            return Wait.ANSWER
        if self.transport.get_write_buffer_size():
            return Wait.TAKING
        if self.conn.their_state is h11.SEND_BODY:
            return Wait.REST
        # uvicorn drops its own timer at the first byte of the next request.
        return Wait.HEADERS if self.timeout_keep_alive_task is None else Wait.NEXT

    def _too_long(self) -> None:
        self._timer = None
        if self._what_now() is not self._wait:  # the answer was taken, of which nobody is told
            self._watch()
        elif self._wait is Wait.HEADERS and self.conn.trailing_data[0]:
            limit = f"{self._limits.receive_s:g} s"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"headers must come within {limit}")
        else:
            self.transport.abort()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer without the application, if an answer can still be sent, and close."""
        client = self.client[0] if self.client else "a client"
        logger.info("%s: connection closed, %d: %s", client, status, message)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # or the application might answer as well
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": message}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            if status is HTTPStatus.SERVICE_UNAVAILABLE:
                headers.append(("retry-after", "1"))
            for event in (
                h11.Response(status_code=status, headers=headers, reason=status.phrase),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
