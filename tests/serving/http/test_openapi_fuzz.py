"""Schemathesis: whatever the OpenAPI document allows is answered as it says, and never with 500."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from http_server import Served, serving
from toy_engine import ToyEngine

TOKEN = "may-do-everything"
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NAMES = {"model": ("pets", "digits"), "task": ("pets", "digits"), "version": ("1", "2")}
"""Of what is there: a name of chance leads no further than to a 404."""


SETTINGS = ServerSettings(tokens=Tokens(inference="may-ask-questions", management=TOKEN))


def document() -> dict[str, object]:
    engine = ToyEngine()
    try:
        described: dict[str, object] = build_app(engine, SETTINGS).openapi()
    finally:
        engine.close()
    return described


OPERATIONS = {
    operation.ok().label: operation.ok()
    for operation in schemathesis.openapi.from_dict(document()).get_all_operations()
}


@pytest.fixture
def served(engine: ToyEngine) -> Iterator[Served]:
    """With a token for each of what may be asked and what may be changed."""
    with serving(build_app(engine, SETTINGS)) as running:
        yield running


@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_is_answered_as_the_document_says(served: Served, label: str) -> None:
    @given(case=OPERATIONS[label].as_strategy(), data=st.data(), may=st.booleans())
    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case, data: st.DataObject, may: bool) -> None:
        for name in case.path_parameters or {}:
            if data.draw(st.integers(0, 3)):
                case.path_parameters[name] = data.draw(st.sampled_from(NAMES[name]))
        headers = {"authorization": f"Bearer {TOKEN}"} if may else {}
        response = case.call(base_url=served.url, headers=headers, session=session)
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=CHECKS)

    with requests.Session() as session:
        check()
    with served.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
