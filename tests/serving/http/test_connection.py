"""Clients that never end, or come in crowds: each wait has an end, and there is room for others."""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.responses import Response

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.http.connection import RESERVED, Connection
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.settings import ServerSettings
from http_server import Served, serving
from toy_engine import ToyEngine

HANGS_S = 30.0
SHORT = ServerSettings(limits=Limits(receive_s=0.3))
ENOUGH = ServerSettings(limits=Limits(receive_s=2 * HANGS_S))
PAUSE_S = 0.02
READY = b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /v2/models/pets/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
CHUNKED = (
    b"POST /v2/models/cars/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
)


@pytest.fixture
def hurried(engine: ToyEngine) -> Iterator[Served]:
    """A server that waits for nobody long."""
    with serving(build_app(engine, SHORT)) as served:
        yield served


def connect(served: Served) -> socket.socket:
    connection = served.connect()
    connection.settimeout(HANGS_S)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    connection.close()
    return b"".join(parts)


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(PAUSE_S)


def n_busy(served: Served) -> int:
    found = [*served.server.server_state.connections]
    return sum(isinstance(each, Connection) and not each.is_idle for each in found)


def is_alive(served: Served) -> bool:
    with connect(served) as connection:
        connection.sendall(READY)
        return connection.recv(12) == b"HTTP/1.1 200"


def dribble(connection: socket.socket, text: bytes) -> bytes:
    """Send bytes one by one, over and over, until the server answers or closes."""
    while True:
        for byte in text:
            readable, _, _ = select.select([connection], [], [], PAUSE_S)
            if readable:
                return all_of(connection)
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                return all_of(connection)


def test_a_connection_that_asks_nothing_is_closed(hurried: Served) -> None:
    assert all_of(connect(hurried)) == b""
    assert is_alive(hurried)


def test_headers_that_never_end_are_answered_408(hurried: Served) -> None:
    connection = connect(hurried)
    connection.sendall(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n")
    answer = dribble(connection, b"x: " + b"a" * 60 + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert json.loads(body) == {"error": "headers must come within 0.3 s"}


def test_so_are_those_of_a_later_request(hurried: Served) -> None:
    connection = connect(hurried)
    connection.sendall(READY)
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert dribble(connection, b"GET /v2 HTTP/1.1\r\nhost: " + b"x" * 99).startswith(
        b"HTTP/1.1 408 "
    )


def test_a_body_that_never_ends_is_answered_408(
    hurried: Served, engine: ToyEngine, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(hurried)
    connection.sendall(POST)
    answer = dribble(connection, b"{")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"x-request-id: " in head
    assert "the body must come within 0.3 s" in json.loads(body)["error"]
    assert engine.seen == []
    assert is_alive(hurried)
    assert "Traceback" not in caplog.text


def test_the_rest_of_a_body_that_is_answered_already_is_not_waited_for(hurried: Served) -> None:
    connection = connect(hurried)
    connection.sendall(POST.replace(b"/pets/", b"/cars/"))
    answer = dribble(connection, b"{")
    while not answer.endswith(b"}"):
        answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_an_answer_that_is_not_taken_is_dropped(engine: ToyEngine) -> None:
    app = build_app(
        engine, ServerSettings(limits=Limits(receive_s=0.3, slowest_bytes_per_s=1 << 40))
    )
    large = b"x" * (64 << 20)  # far more than the system's buffers hold

    @app.get("/large")
    async def get_large() -> Response:
        return Response(large)

    with serving(app) as served:
        connection = connect(served)
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: not served.server.server_state.connections)
        assert len(all_of(connection)) < len(large)
        assert is_alive(served)


def test_pipelined_requests_are_all_answered(hurried: Served) -> None:
    connection = connect(hurried)
    connection.sendall(READY * 5)
    answers = b""
    while answers.count(b"HTTP/1.1 200") < 5:
        answers += connection.recv(1 << 16)
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        CHUNKED.replace(b"/cars/", b"/pets/") + b"zz\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_json(
    served: Served, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(served)
    connection.sendall(sent)
    head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"error": "this must be a request of HTTP/1.1"}
    assert is_alive(served)
    assert "Traceback" not in caplog.text


def test_nonsense_behind_an_answer_ends_the_connection_quietly(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(served)
    connection.sendall(CHUNKED + b"1\r\n{")
    answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 404 ")
    connection.sendall(b"\r\nzz\r\n")
    all_of(connection)
    assert is_alive(served)
    assert [one for one in caplog.records if one.exc_info] == []


def test_a_request_for_another_protocol_is_answered_without_it(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), connect(served) as connection:
        connection.sendall(
            b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n"
            b"upgrade: websocket\r\n\r\n"
        )
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert "WebSocket" not in caplog.text


def test_a_crowd_of_idle_connections_keeps_nobody_out(engine: ToyEngine) -> None:
    settings = ServerSettings(limits=ENOUGH.limits, max_connections=1)
    with serving(build_app(engine, settings)) as served:
        crowd = []
        for _ in range(RESERVED + 1):
            crowd.append(connect(served))
            assert is_alive(served)
        assert is_alive(served)
        assert crowd[0].recv(1) == b""  # the one that was idle longest made room
        crowd[-1].sendall(READY)
        assert crowd[-1].recv(12) == b"HTTP/1.1 200"
        for connection in crowd:
            connection.close()


def test_where_all_are_busy_the_next_is_refused(engine: ToyEngine) -> None:
    engine.release.clear()
    settings = ServerSettings(limits=ENOUGH.limits, max_connections=1)
    with serving(build_app(engine, settings)) as served:
        busy = [connect(served) for _ in range(RESERVED + 1)]
        for connection in busy:
            connection.sendall(POST)
        wait_until(lambda: n_busy(served) == len(busy))
        refused = all_of(connect(served))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused
        assert b'{"error": "too many connections. Come back later"}' in refused
        busy.pop().close()
        wait_until(lambda: n_busy(served) == RESERVED)
        assert is_alive(served)
        for connection in busy:
            connection.close()
        engine.release.set()
