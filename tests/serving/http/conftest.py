"""Servers over the toy engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest
from starlette.testclient import TestClient

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from http_server import Served, serving
from toy_engine import ToyEngine

URL = "http://127.0.0.1"
MANAGEMENT = "changing-token"
MAY_MANAGE = {"authorization": f"Bearer {MANAGEMENT}"}

MakeClient: TypeAlias = Callable[..., TestClient]


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.release.set()
    made.close()


@pytest.fixture
def make_client(engine: ToyEngine) -> Iterator[MakeClient]:
    """Clients of servers with other settings; what fails in the server answers 500."""
    with ExitStack() as stack:

        def make(settings: ServerSettings | None = None) -> TestClient:
            app = build_app(engine, settings)
            return stack.enter_context(TestClient(app, URL, raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """With management under ``MAY_MANAGE``."""
    return make_client(ServerSettings(tokens=Tokens(management=MANAGEMENT)))


@pytest.fixture
def served(engine: ToyEngine) -> Iterator[Served]:
    """A server at a socket, with management under ``MAY_MANAGE``."""
    settings = ServerSettings(tokens=Tokens(management=MANAGEMENT))
    with serving(build_app(engine, settings)) as running:
        yield running
