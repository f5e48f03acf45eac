"""A server of HTTP in a thread, for clients that speak over sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from glora_deploy.serving.http.server import HttpServer
from glora_deploy.serving.listening import bind


class Served:
    """A running server."""

    def __init__(self, server: HttpServer, port: int, thread: threading.Thread) -> None:
        self.server, self.port, self.thread = server, port, thread
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))


@contextmanager
def serving(app: FastAPI) -> Iterator[Served]:
    """Serve an application at a free port of the loopback interface."""
    bound = bind("127.0.0.1", 0)
    server = HttpServer(app, app.state.service.settings)
    thread = threading.Thread(target=lambda: server.run([bound]))
    thread.start()
    server.listening.wait()
    try:
        yield Served(server, bound.getsockname()[1], thread)
    finally:
        server.leave()
        thread.join()
