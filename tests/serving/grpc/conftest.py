"""Servers of gRPC over the toy engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from grpc_server import ServedGrpc, serving_grpc
from toy_engine import ToyEngine

MANAGEMENT = "changing-token"

MakeServed: TypeAlias = Callable[[ServerSettings], ServedGrpc]


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.release.set()
    made.close()


@pytest.fixture
def make_served(engine: ToyEngine) -> Iterator[MakeServed]:
    """Servers with other settings."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(serving_grpc(engine, settings))


@pytest.fixture
def served(make_served: MakeServed) -> ServedGrpc:
    """With management under its token, inference open."""
    return make_served(ServerSettings(tokens=Tokens(management=MANAGEMENT)))


@pytest.fixture
def stub(served: ServedGrpc) -> Iterator[Any]:
    """The calls as gRPC itself makes them."""
    with grpc.insecure_channel(served.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
