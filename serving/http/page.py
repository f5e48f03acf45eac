"""The page for people, and what operators read: metrics."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..telemetry.metrics import CONTENT_TYPE
from .route_tools import service_of

WEB = "glora_deploy.serving.web"

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)
metrics = APIRouter(include_in_schema=False)


@router.get("/", name="page")
async def get_page() -> Response:
    """The page."""
    return _file("index.html", "text/html")


@router.get("/app.js", name="page")
async def get_script() -> Response:
    """What it does."""
    return _file("app.js", "text/javascript")


@router.get("/style.css", name="page")
async def get_style() -> Response:
    """How it looks."""
    return _file("style.css", "text/css")


@router.get("/favicon.ico", name="page")
async def get_icon() -> Response:
    """There is none; a browser asks all the same, and no log need say 404."""
    return Response(status_code=204)


@metrics.get("/metrics", name="metrics")
async def get_metrics(request: Request) -> Response:
    """Counts in Prometheus' text format."""
    service = service_of(request)
    text = await service.read(service.telemetry.metrics.exposition)
    return Response(text, media_type=CONTENT_TYPE)


@cache
def _text(name: str) -> bytes:
    return files(WEB).joinpath(name).read_bytes()


def _file(name: str, media_type: str) -> Response:
    headers = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}
    return Response(_text(name), media_type=media_type, headers=headers)
