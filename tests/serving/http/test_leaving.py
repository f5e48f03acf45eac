"""Clients that go, and a server that leaves: nothing admitted is lost, nothing new is taken."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from typing import Any

import pytest

from glora_deploy.serving.http import connection as connection_module
from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.http.connection import Wait
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from http_server import Served, serving
from toy_engine import SIZE, ToyEngine

IMAGE = {
    "name": "image",
    "shape": [1, 3, SIZE, SIZE],
    "datatype": "FP32",
    "data": [0.5] * (3 * SIZE * SIZE),
}
BODY = json.dumps({"inputs": [IMAGE]}).encode()
INFER = "/v2/models/pets/infer"


def post(served: Served, path: str = INFER, body: bytes = BODY) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(served.address)
    connection.request("POST", path, body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_a_client_that_goes_takes_its_request_out_of_the_queue(
    served: Served, engine: ToyEngine
) -> None:
    engine.release.clear()
    gone = served.connect()
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(BODY)}\r\n\r\n"
    gone.sendall(head.encode() + BODY)
    engine.wait_until(queued=1)
    gone.close()
    engine.wait_until(queued=0)
    engine.release.set()
    assert post(served)[0] == 200
    assert sum(each.inference_count for each in engine.statistics()) == 1


def test_a_client_that_goes_within_its_body_asks_nothing(served: Served, engine: ToyEngine) -> None:
    gone = served.connect()
    gone.sendall(
        f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999\r\n\r\n{{".encode()
    )
    gone.close()
    assert post(served)[0] == 200
    assert len(engine.seen) == 1


@pytest.mark.parametrize(
    "sent", [b"\x00\xff\r\n\r\n", b"GET /v2 HTTP/9.9\r\n\r\n", b"GET " + b"a" * 100_000, b"\r\n"]
)
def test_what_is_no_http_ends_its_connection_alone(served: Served, sent: bytes) -> None:
    broken = served.connect()
    broken.sendall(sent)
    broken.close()
    assert post(served)[0] == 200


def test_leaving_answers_what_has_come_and_takes_nothing_more(engine: ToyEngine) -> None:
    engine.release.clear()
    answers: list[tuple[int, Any]] = []
    app = build_app(engine, ServerSettings(tokens=Tokens(management="changing-token")))
    with serving(app) as served:
        idle = http.client.HTTPConnection(served.address)
        idle.request("GET", "/v2/health/ready")
        assert idle.getresponse().read() == b""
        asking = threading.Thread(target=lambda: answers.append(post(served)))
        asking.start()
        engine.wait_until(queued=1)
        app.state.service.draining = True
        idle.request("GET", "/v2/health/ready")
        ready = idle.getresponse()
        assert (ready.status, json.loads(ready.read())) == (503, {"error": "the server is leaving"})
        assert ready.headers["connection"] == "close"
        idle.request("GET", "/v2/health/live")
        live = idle.getresponse()
        assert (live.status, live.read()) == (200, b"")
        idle.request("POST", INFER, BODY)
        assert idle.getresponse().headers["retry-after"] == "1"
        assert post(served) == (503, {"error": "the server is leaving"})
        served.server.leave()
        engine.release.set()
        asking.join()
        served.thread.join()
    ((status, answer),) = answers
    assert (status, answer["model_version"]) == (200, "2")
    with pytest.raises(ConnectionRefusedError):
        served.connect()
    idle.close()


def test_a_request_that_was_on_its_way_when_the_server_left_is_told(
    engine: ToyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "LINGER_S", 600.0)
    with serving(build_app(engine)) as served:
        idle = http.client.HTTPConnection(served.address)
        idle.request("GET", "/v2/health/ready")
        assert idle.getresponse().read() == b""
        (connection,) = served.server.server_state.connections
        while connection._what_now() is not Wait.NEXT:
            pass  # the client may know before the server does that its answer has come
        served.server.leave()
        while is_open(served):
            pass
        idle.request("POST", INFER, BODY)
        answer = idle.getresponse()
        assert (answer.status, json.loads(answer.read())) == (
            503,
            {"error": "the server is leaving"},
        )
        served.thread.join()  # not after the ten minutes: nobody is there any more
    idle.close()


def is_open(served: Served) -> bool:
    """Whether the port takes connections."""
    try:
        served.connect().close()
    except ConnectionError:
        return False
    return True


def test_more_requests_at_once_than_allowed_are_refused(engine: ToyEngine) -> None:
    engine.release.clear()
    answers: list[tuple[int, Any]] = []
    with serving(build_app(engine, ServerSettings(max_connections=1))) as served:
        asking = threading.Thread(target=lambda: answers.append(post(served)))
        asking.start()
        engine.wait_until(queued=1)
        connection = http.client.HTTPConnection(served.address)
        connection.request("POST", INFER, BODY)
        response = connection.getresponse()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert "too many requests are under way" in json.loads(response.read())["error"]
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()
        engine.release.set()
        asking.join()
        assert post(served)[0] == 200
    assert [status for status, _ in answers] == [200]


def test_no_answer_waits_for_an_acknowledgement(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        (accepted,) = served.server.server_state.connections
        own = accepted.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
