"""The standard health service, which says what the engine and the server say."""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health, health_pb2 as pb

from ..service import Service
from .gate import SERVICE


class Health(health.aio.HealthServicer):  # type: ignore[misc] # grpc ships no types
    """``SERVING`` while requests are taken: of the whole server, and of the inference service.

    Args:
        service: The engine as all transports use it.
    """

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    async def Check(self, request: Any, context: Any) -> Any:
        """The status now; those who watch are told of it too."""
        await self.refresh()
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:
        """The status now and whenever it has changed."""
        await self.refresh()
        await super().Watch(request, context)

    async def refresh(self) -> None:
        """Ask the engine anew."""
        serving = self._service.engine.ready and not self._service.draining
        status = pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self.set(name, status)
