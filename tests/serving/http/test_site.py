"""Pages of other sites, in a browser that can reach the server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings

ASK = "asking-token"
MakeClient = Callable[[ServerSettings], TestClient]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "a.localhost", "127.9.9.9"],
)
def test_names_of_this_machine_may_be_asked_by(client: TestClient, host: str) -> None:
    assert client.get("/v1/tasks", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_name_may_not(client: TestClient, host: str) -> None:
    for path in ("/v1/tasks", "/v2", "/v2/models/pets", "/openapi.json", "/metrics"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 421
        assert "allow this name with --name" in response.json()["error"]
    # A probe shows nothing, and an orchestrator asks by any name.
    assert client.get("/v2/health/ready", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        ServerSettings(names=("proxy.example",)),
        ServerSettings(host="0.0.0.0"),
        ServerSettings(tokens=Tokens(inference=ASK)),
    ],
)
def test_it_may_where_it_is_allowed_or_a_token_is_asked_for(
    make_client: MakeClient, settings: ServerSettings
) -> None:
    headers = {"host": "Proxy.example:443", "authorization": f"Bearer {ASK}"}
    assert make_client(settings).get("/v1/tasks", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-origin", 415), ("same-site", 415), ("none", 415)],
)
def test_a_page_of_another_site_may_not_ask(client: TestClient, site: str, status: int) -> None:
    headers = {"sec-fetch-site": site, "content-type": "text/plain"}
    assert client.post("/v1/tasks/pets/predict", headers=headers).status_code == status
    assert client.get("/", headers=headers).status_code == 200


def test_no_other_site_may_read(client: TestClient) -> None:
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for method in ("GET", "OPTIONS", "POST"):
        response = client.request(method, "/v2/models/pets/infer", headers=origin)
        assert not [name for name in response.headers if name.startswith("access-control")]
