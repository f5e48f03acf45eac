"""A gRPC server on the event loop that runs, and its orderly leave."""

from __future__ import annotations

import math

from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc

from ..service import Service
from .gate import HEALTH, REFLECTION, SERVICE, Gate
from .health import Health
from .servicer import Servicer

_MESSAGE_OVERHEAD = 64 << 10
"""Bytes of a message beside the tensors in it."""

_ASK_AFTER_MS = 60_000
"""Of silence, after which a client is asked whether it is there."""
_IDLE_MS = 600_000
"""After which a connection without a call ends; clients open another by themselves."""


class GrpcServer:
    """Serves until it is told to leave. Made by :func:`serve_grpc`."""

    def __init__(self, server: aio.Server, health: Health, service: Service, port: int) -> None:
        self._server, self._health, self._service = server, health, service
        self.port = port
        """That it listens at."""

    async def leave(self) -> None:
        """Take nothing more, answer what has come, and end.

        What has not been answered when the settings' ``drain_s`` are over is ended CANCELLED.
        """
        self._service.draining = True
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._service.settings.drain_s)

    async def end(self) -> None:
        """End at once: what has not been answered is CANCELLED."""
        await self._server.stop(None)


async def serve_grpc(service: Service) -> GrpcServer:
    """Take calls at the settings' ``host`` and ``grpc_port``.

    Args:
        service: The engine as all transports use it; whoever made it closes it.

    Raises:
        ValueError: If the settings name no port for gRPC.
        OSError: If the address is in use or not this machine's.
    """
    settings = service.settings
    if settings.grpc_port is None:
        raise ValueError("grpc_port must be a port, got None")
    server = aio.server(
        interceptors=[Gate(service)],
        options=[
            ("grpc.max_receive_message_length", settings.limits.max_body_bytes + _MESSAGE_OVERHEAD),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second server would take half of the calls
            ("grpc.server_handshake_timeout_ms", math.ceil(settings.limits.receive_s * 1000)),
            ("grpc.keepalive_time_ms", _ASK_AFTER_MS),  # a client may be gone without a word
            ("grpc.max_connection_idle_ms", _IDLE_MS),
        ],
        maximum_concurrent_rpcs=settings.max_connections,
    )
    health = Health(service)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((SERVICE, HEALTH, REFLECTION), server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise OSError(
            f"{host}:{settings.grpc_port}: must be an address that is free, for gRPC, got one that "
            "is in use or not this machine's. Give another --grpc-port"
        ) from error
    await health.refresh()
    await server.start()
    return GrpcServer(server, health, service, port)
