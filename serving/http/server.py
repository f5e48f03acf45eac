"""uvicorn around the application: its own socket, and an orderly leave."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from ..settings import ServerSettings
from .service import Service

_MAX_HEADER_BYTES = 64 << 10


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody is answered from yet; taken before anything slow is done.

    Raises:
        OSError: If the address is in use or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


class HttpServer(uvicorn.Server):
    """Serves the application until it is told to leave.

    Args:
        app: Of ``build_app``.
        settings: Of the server.
    """

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # the gate writes its own
                server_header=False,
                proxy_headers=False,  # any client can write them
                ws="none",
                lifespan="on",
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_graceful_shutdown=math.ceil(settings.drain_s),
            )
        )
        self.listening = threading.Event()
        """Set once requests are taken."""
        self._service: Service = app.state.service

    def leave(self) -> None:
        """Take nothing more, answer what has come, and end; a second call ends at once."""
        self.force_exit = self.should_exit
        self._service.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs this: there is more to close than HTTP."""
        yield
