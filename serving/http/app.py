"""The ASGI application over an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from ..first_use import FirstUse
from ..protocol.tokens import Realm
from ..service import Service
from ..settings import ServerSettings
from ..tasks.contract import TaskEngine
from ..telemetry.metrics import Metrics
from ..telemetry.telemetry import Telemetry
from . import inference, page, predict, repository
from .errors import error_body
from .gate import OPEN, Gate

if TYPE_CHECKING:
    from ..telemetry.tracing import Tracing

_DESCRIPTION = """Image classification tasks that share one backbone.

`/v2` is the Open Inference Protocol with Triton's binary-tensor, classification, statistics,
model-configuration and model-repository extensions; `/v1` takes encoded images and gives labels.
Every answer names the task, the version and the sha256 of the delta that computed it. Every error
is `{"error": "..."}`.
"""

_TOKENS: dict[Realm, str] = {
    "inference": "where the server was started with a token to ask with",
    "management": "changes what is served; without it the server was started for nobody to do so",
}


class _App(FastAPI):
    """FastAPI, with the two tokens in what describes it."""

    def openapi(self) -> dict[str, Any]:
        """The document at ``/openapi.json``."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["securitySchemes"] = {
                realm: {"type": "http", "scheme": "bearer", "description": what}
                for realm, what in _TOKENS.items()
            }
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if path not in OPEN:
                        operation["security"] = [{_realm(method, path): []}]
        return super().openapi()


def _realm(method: str, path: str) -> Realm:
    managed = {
        (verb.lower(), route.path)
        for route in repository.managed.routes
        if isinstance(route, APIRoute)
        for verb in route.methods or ()
    }
    return "management" if (method, path) in managed else "inference"


def build_app(
    engine: TaskEngine,
    settings: ServerSettings | None = None,
    *,
    tracing: Tracing | None = None,
    telemetry: Telemetry | None = None,
    first_use: FirstUse | None = None,
) -> FastAPI:
    """The application.

    Args:
        engine: Answers; whoever made it closes it.
        settings: Of the server; the defaults if None.
        tracing: Where spans go; nowhere if None.
        telemetry: Shared with another transport; its own if None, with ``tracing``.
        first_use: What brings tasks in that the engine has not; nothing does if None.

    Returns:
        An ASGI application; its ``state.service`` can be told to drain.
    """
    settings = settings or ServerSettings()
    version = installed_version("glora-deploy")
    if telemetry is None:
        metrics = Metrics(engine, max_tasks=settings.max_task_labels, version=version)
        telemetry = Telemetry(metrics=metrics, tracing=tracing)
    service = Service(engine, settings, telemetry, first_use)
    app = _App(
        title="GLoRA Deploy",
        version=version,
        description=_DESCRIPTION,
        # Their pages load scripts from elsewhere; /openapi.json is whole.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        middleware=[Middleware(Gate, service=service)],
        exception_handlers={
            HTTPException: _http_exception,
            RequestValidationError: _validation_error,
        },
    )
    app.state.service = service
    for router in (
        inference.router,
        repository.router,
        repository.managed,
        predict.router,
        page.router,
    ):
        app.include_router(router)
    if settings.metrics_port is None:
        app.include_router(page.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    service: Service = app.state.service
    service.close()
    service.telemetry.close()


async def _http_exception(request: Request, error: Exception) -> Response:
    """Of Starlette itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    return error_body(error.status_code, str(error.detail), error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    return error_body(400, "the request does not fit this route; see /openapi.json")
