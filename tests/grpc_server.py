"""A server of gRPC in a thread, for clients that speak over sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from glora_deploy.serving.grpc.server import GrpcServer, serve_grpc
from glora_deploy.serving.service import Service
from glora_deploy.serving.settings import ServerSettings
from glora_deploy.serving.tasks.contract import TaskEngine
from glora_deploy.serving.telemetry.metrics import Metrics
from glora_deploy.serving.telemetry.telemetry import Telemetry


class ServedGrpc:
    """A running server."""

    def __init__(
        self, service: Service, server: GrpcServer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.service, self.metrics = service, service.telemetry.metrics
        self.address = f"127.0.0.1:{server.port}"
        self._server, self._loop = server, loop

    def leave(self) -> None:
        """Tell it to leave; returns once it has."""
        asyncio.run_coroutine_threadsafe(self._server.leave(), self._loop).result()


@contextmanager
def serving_grpc(
    engine: TaskEngine, settings: ServerSettings | None = None
) -> Iterator[ServedGrpc]:
    """Serve an engine at a free port of the loopback interface."""
    settings = replace(settings or ServerSettings(), grpc_port=0)
    service = Service(engine, settings, Telemetry(metrics=Metrics(engine, max_tasks=9, version="")))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(serve_grpc(service), loop).result()
        served = ServedGrpc(service, server, loop)
        try:
            yield served
        finally:
            served.leave()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        service.close()
