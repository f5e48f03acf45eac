"""uvicorn around the application: its own socket, and an orderly leave."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from ..service import Service
from ..settings import ServerSettings
from .connection import LINGER_S, Connection

_MAX_HEADER_BYTES = 64 << 10
_LOOK_S = 0.1
"""How often a leave looks whether it was told to hurry; as uvicorn does."""


class Beside(Protocol):
    """Another transport on the same event loop, over the same service."""

    async def leave(self) -> None:
        """Take nothing more, answer what has come, and end."""
        ...

    async def end(self) -> None:
        """End at once."""
        ...


class HttpServer(uvicorn.Server):
    """Serves the application until it is told to leave.

    Args:
        app: Of ``build_app``.
        settings: Of the server.
    """

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        connection: Any = partial(Connection, settings)  # uvicorn's type wants a class
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                log_config=None,
                access_log=False,  # the gate writes its own
                server_header=False,
                proxy_headers=False,  # any client can write them
                ws="none",
                lifespan="on",
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_keep_alive=math.ceil(settings.keep_alive_s),
                timeout_graceful_shutdown=math.ceil(settings.drain_s),
            )
        )
        self.listening = threading.Event()
        """Set once requests are taken."""
        self.beside: Beside | None = None
        """Leaves when this does, and before the threads that both use are ended."""
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave in order, and at a second call to ``leave`` at once.

        For a moment everything stays open, and what comes is told that the server leaves: what is
        on its way when a port closes would be told nothing.
        """
        if not self.force_exit:
            await asyncio.sleep(LINGER_S)
        if self.beside is not None:
            leaving = asyncio.ensure_future(self.beside.leave())
            while not self.force_exit and not leaving.done():
                await asyncio.wait((leaving,), timeout=_LOOK_S)
            if self.force_exit:
                await self.beside.end()
            await leaving
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs this: there is more to close than HTTP."""
        yield
