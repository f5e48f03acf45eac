"""What is printed at the start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from glora_deploy.serving.announcement import announcement
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from toy_engine import ToyEngine


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.close()


def test_it_says_where_and_who_may_do_what(engine: ToyEngine) -> None:
    text = announcement(engine, ServerSettings(), host="127.0.0.1", port=8000, grpc_port=8001)
    assert text.splitlines() == [
        "http://127.0.0.1:8000 serves 2 tasks; gRPC at 127.0.0.1:8001",
        "page: http://127.0.0.1:8000/",
        "may ask: anyone who reaches this address; may load and unload: nobody (management is off)",
    ]


def test_it_names_no_token(engine: ToyEngine) -> None:
    tokens = Tokens(inference="asking-token", management="changing-token")
    settings = ServerSettings(tokens=tokens)
    text = announcement(engine, settings, host="::", port=80, grpc_port=None)
    assert text.splitlines() == [
        "http://[::]:80 serves 2 tasks",
        "page: http://[::1]:80/",
        "may ask: whoever shows the token; may load and unload: the management token",
    ]


def test_it_counts_what_answers(engine: ToyEngine) -> None:
    engine.unload("digits")
    text = announcement(engine, ServerSettings(), host="127.0.0.1", port=80, grpc_port=None)
    assert text.splitlines()[:2] == [
        "http://127.0.0.1:80 serves 1 task",
        "not served: 1 task; the log says why",
    ]
