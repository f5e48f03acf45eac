"""A server from its first bind to its last answer."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from glora_deploy.errors import MissingDependencyError, StoreError

from .announcement import address, announcement
from .listening import bind
from .resources import allow_open_files, free_memory_of_large_images
from .settings import ServerSettings
from .tasks.contract import TaskEngine
from .tasks.settings import EngineSettings

if TYPE_CHECKING:
    from .first_use import TaskSource
    from .http.server import HttpServer
    from .service import Service

_BACKLOG = 2048
"""Connections that wait to be accepted."""
_OTHER_FILES = 1024
"""Files and sockets that are open beside HTTP's connections: the store's, and those of gRPC."""


def run_server(
    store: Path,
    engine_settings: EngineSettings,
    settings: ServerSettings,
    *,
    otlp_endpoint: str | None = None,
    announce: Callable[[str], None] = print,
    engine_type: Callable[[Path, EngineSettings], TaskEngine] | None = None,
    source: TaskSource | None = None,
) -> None:
    """Serve a store until SIGTERM or Ctrl-C; then answer what has come, and return.

    Args:
        store: Folder of the store; only read.
        engine_settings: Of the engine.
        settings: Of the server.
        otlp_endpoint: Where traces go; nowhere if None.
        announce: Given a few lines once requests are taken; the first says where.
        engine_type: What makes the engine; ``StoreEngine`` if None.
        source: What fills the store; nothing does if None.

    Raises:
        StoreError: If there is no store, or nothing in it can be served.
        OSError: If a port is in use; names it.
        MissingDependencyError: If a package of the extra ``serve`` is missing.
    """
    try:
        from .first_use import FirstUse
        from .http.app import build_app
        from .http.server import HttpServer
        from .telemetry.metrics import Metrics
        from .telemetry.telemetry import Telemetry
        from .telemetry.tracing import Tracing

        if settings.grpc_port is not None:
            from .grpc import server as _  # noqa: F401 # what is missing is told before the start
    except ModuleNotFoundError as error:
        raise MissingDependencyError(str(error.name), "serve", "serving") from error
    allow_open_files(settings.max_connections + _OTHER_FILES)
    free_memory_of_large_images()
    with ExitStack() as stack:
        bound = stack.enter_context(_bound(settings.host, settings.port))
        for port, option in (
            (settings.grpc_port, "--grpc-port"),
            (settings.metrics_port, "--metrics-port"),
        ):
            if port:  # taken for good only once there is an engine, which takes a while to open
                with _named(settings.host, port, option):
                    bind(settings.host, port).close()
        tracing = Tracing.to_endpoint(otlp_endpoint) if otlp_endpoint else None
        engine = _open_engine(store, engine_settings, engine_type, source)
        stack.callback(engine.close, settings.drain_s)
        metrics = Metrics(
            engine,
            max_tasks=settings.max_task_labels,
            version=installed_version("glora-deploy"),
            source=source,
        )
        if settings.metrics_port is not None:
            with _named(settings.host, settings.metrics_port, "--metrics-port"):
                stack.callback(metrics.serve(settings.host, settings.metrics_port))
        telemetry = Telemetry(metrics=metrics, tracing=tracing)
        stack.callback(telemetry.close)
        on_demand = source is not None and source.on_demand
        first_use = FirstUse(engine, source) if source is not None and on_demand else None
        app = build_app(engine, settings, telemetry=telemetry, first_use=first_use)
        server = HttpServer(app, settings)
        with _left_by_signal(server.leave):
            asyncio.run(_serve(server, app.state.service, bound, announce))


async def _serve(
    server: HttpServer, service: Service, bound: socket.socket, announce: Callable[[str], None]
) -> None:
    """Answer over every transport until the server is told to leave."""
    host, port = bound.getsockname()[:2]
    text = partial(
        announcement,
        service.engine,
        service.settings,
        host=host,
        port=port,
        n_absent=len(service.absent()),
    )
    bound.listen(_BACKLOG)  # who reads the first line may connect at once
    if service.settings.grpc_port is None:
        announce(text(grpc_port=None))
        await server.serve([bound])
        return
    from .grpc.server import serve_grpc

    grpc = server.beside = await serve_grpc(service)
    try:
        announce(text(grpc_port=grpc.port))
        await server.serve([bound])
    finally:
        await grpc.end()


def _open_engine(
    store: Path,
    settings: EngineSettings,
    engine_type: Callable[[Path, EngineSettings], TaskEngine] | None,
    source: TaskSource | None,
) -> TaskEngine:
    from .tasks.engine import StoreEngine

    engine = (engine_type or StoreEngine)(store, settings)
    if source is not None and source.on_demand and source.offered():
        return engine  # what is not there, or cannot be served, may still come
    try:
        if not engine.tasks():
            raise StoreError(
                f"{store}: must hold a task to serve, it has none. "
                f"Train one: glora train --task digits --store {store}"
            )
        if all(each.state != "READY" for each in engine.versions()):
            first = engine.versions()[0]
            # The engine's texts reach clients, and name no path.
            reason = first.reason.replace("--store STORE", f"--store {store}")
            raise StoreError(
                f"{store}: must hold a version that can be served, got {first.task}/"
                f"{first.version} {first.state}: {reason}"
            )
    except BaseException:
        engine.close(0)
        raise
    return engine


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    with _named(host, port, "--port"):
        bound = bind(host, port)
    with bound:
        yield bound


@contextmanager
def _named(host: str, port: int, option: str) -> Iterator[None]:
    """Say which address an error of the operating system is about, and which option to mend."""
    try:
        yield
    except OSError as error:
        option = option if error.errno == errno.EADDRINUSE else "--host"
        raise OSError(
            f"{address(host, port)}: must be an address of this machine that is free, "
            f"got: {error.strerror or error}. Give another {option}"
        ) from error


@contextmanager
def _left_by_signal(leave: Callable[[], None]) -> Iterator[None]:
    """Leave in order at SIGTERM or Ctrl-C; at the second one at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        leave()

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
