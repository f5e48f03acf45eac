"""Ids, tokens, rates and headers: what holds of every request."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from glora_deploy.serving.http import inference, page, predict, repository
from glora_deploy.serving.http.gate import OPEN
from glora_deploy.serving.http.route_tools import require_management
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.rate import RateLimit, RateLimitError
from glora_deploy.serving.settings import ServerSettings
from toy_engine import ToyEngine

ASK, CHANGE = "asking-token", "changing-token"
BOTH = ServerSettings(tokens=Tokens(inference=ASK, management=CHANGE))
CHANGES = [
    ("POST", "/v2/repository/models/pets/load"),
    ("POST", "/v2/repository/models/pets/unload"),
    ("POST", "/v1/tasks/pets/prefetch"),
    ("PUT", "/v1/tasks/pets/pin"),
    ("DELETE", "/v1/tasks/pets/pin"),
]


def routes_of(router: APIRouter) -> set[tuple[str, str]]:
    """Methods and paths."""
    return {
        (method, route.path)
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("stated", ["abc-1", "A.b_c:7", "x" * 128])
def test_a_request_id_comes_back(client: TestClient, stated: str) -> None:
    response = client.get("/v2", headers={"x-request-id": stated})
    assert response.headers["x-request-id"] == stated


@pytest.mark.parametrize("stated", ["", "a b", "<script>", "x" * 129, "-a"])
def test_a_request_without_a_fit_id_gets_one(client: TestClient, stated: str) -> None:
    first, second = (client.get("/v2", headers={"x-request-id": stated}) for _ in range(2))
    ids = {one.headers["x-request-id"] for one in (first, second)}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) for one in ids)


@pytest.mark.parametrize("path", ["/v2", "/nowhere", "/v2/models/cars", "/v1/status", "/"])
def test_every_answer_is_shut_to_other_sites(client: TestClient, path: str) -> None:
    headers = client.get(path, headers={"origin": "https://elsewhere.example"}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert not [name for name in headers if name.startswith("access-control")]
    assert "server" not in headers


def test_no_other_site_is_let_in_by_a_preflight(client: TestClient) -> None:
    response = client.options(
        "/v1/tasks/pets/predict",
        headers={
            "origin": "https://elsewhere.example",
            "access-control-request-method": "POST",
        },
    )
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_nobody_manages_without_a_token_of_the_server(make_client: Any, engine: ToyEngine) -> None:
    client = make_client(ServerSettings())
    for method, path in CHANGES:
        response = client.request(method, path, headers=bearer("anything-at-all"))
        assert response.status_code == 403
        assert "management is off" in response.json()["error"]
    assert all(one.state == "READY" and not one.pinned for one in engine.versions())


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_the_token_to_ask_does_not_let_change(
    make_client: Any, engine: ToyEngine, method: str, path: str
) -> None:
    client = make_client(BOTH)
    for headers in ({}, bearer(ASK), bearer(CHANGE + "x")):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert all(one.state == "READY" and not one.pinned for one in engine.versions())
    assert client.request(method, path, headers=bearer(CHANGE)).status_code == 200


def test_with_a_token_nothing_but_probes_and_the_page_is_open(make_client: Any) -> None:
    client = make_client(BOTH)
    routers = (
        inference.router, repository.router, repository.managed, predict.router, page.router,
        page.metrics,
    )  # fmt: skip
    routes = {route for router in routers for route in routes_of(router)}
    assert len(routes) > 25
    for method, template in routes:
        path = re.sub(r"\{\w+\}", "pets", template)
        response = client.request(method, path)
        assert (response.status_code == 401) == (template not in OPEN), template
    assert client.get("/openapi.json").status_code == 401
    assert client.get("/openapi.json", headers=bearer(ASK)).status_code == 200
    assert client.get("/v2/models/pets", headers=bearer(ASK)).status_code == 200


def test_every_route_that_changes_something_needs_the_management_token() -> None:
    assert [one.dependency for one in repository.managed.dependencies] == [require_management]
    assert routes_of(repository.managed) == {
        (method, path.replace("pets", "{model}" if "repository" in path else "{task}"))
        for method, path in CHANGES
    }
    others = (inference.router, repository.router, predict.router, page.router, page.metrics)
    assert {path for router in others for method, path in routes_of(router) if method != "GET"} == {
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/infer",
        "/v2/repository/index",
        "/v1/tasks/{task}/predict",
    }


def test_too_many_requests_are_told_when_to_come_back(make_client: Any) -> None:
    client = make_client(ServerSettings(rate_per_s=0.01, rate_burst=2))
    assert [client.get("/v2").status_code for _ in range(3)] == [200, 200, 429]
    response = client.get("/v2")
    assert 90 <= int(response.headers["retry-after"]) <= 100
    assert client.get("/v2/health/ready").status_code == 200  # probes are not counted


def test_a_client_has_its_burst_and_then_its_rate() -> None:
    now = 0.0
    limit = RateLimit(2, 3, most_clients=2, clock=lambda: now)

    def taken(client: str) -> bool:
        try:
            limit.take(client)
        except RateLimitError:
            return False
        return True

    assert [taken("a") for _ in range(4)] == [True, True, True, False]
    assert taken("b")
    now = 0.5
    assert [taken("a") for _ in range(2)] == [True, False]
    now = 100.0
    assert [taken("a") for _ in range(4)] == [True, True, True, False]
    assert taken("c")  # the third client: b, who asked longest ago, is forgotten
    assert [taken("a"), taken("b")] == [False, True]


def test_more_than_one_forgotten_client_takes_no_memory() -> None:
    limit = RateLimit(1, 1, most_clients=10, clock=lambda: 0.0)
    for number in range(1000):
        limit.take(str(number))
    assert len(limit._buckets) == 10
