"""Clients that misbehave: they vanish, dawdle, and send what is no request."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc

from .ledger import Ledger
from .server import Server

PATIENCE_S = 30.0
DAWDLES_S = 1.5
MODEL = b"/v2/models/t0"


def misbehave(server: Server, ledger: Ledger, seed: int, until: Callable[[], bool]) -> None:
    """Each misdeed once, and then any of them, until the time has come."""
    rng = random.Random(seed)
    deeds = (vanish, dawdle_reading, dawdle_sending, send_nonsense, cancel, send_noise_to_grpc)
    once = list(deeds)
    while not until():
        deed = once.pop() if once else rng.choice(deeds)
        try:
            deed(server, ledger, rng)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                ledger.problem("an intruder that is not answered", deed.__name__)
        ledger.count(f"intruders: {deed.__name__}")
        _require_life(server, ledger)


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def _reset(connection: socket.socket) -> None:
    """Close as a killed process's machine does where data was left."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _request(n_images: int = 4) -> bytes:
    values = np.zeros((n_images, 3, 32, 32), np.float32)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "FP32",
                    "shape": list(values.shape),
                    "parameters": {"binary_data_size": values.nbytes},
                }
            ]
        }
    ).encode()
    body = head + values.tobytes()
    return (
        b"POST %b/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n"
        b"inference-header-content-length: %d\r\n\r\n" % (MODEL, len(body), len(head))
    ) + body


def vanish(server: Server, ledger: Ledger, rng: random.Random) -> None:
    """Be killed within a request, or while its answer is waited for."""
    whole = _request()
    connection = _connect(server.http)
    connection.sendall(whole[: rng.randint(1, len(whole))])
    time.sleep(rng.random() * 0.02)
    _reset(connection)


def dawdle_reading(server: Server, ledger: Ledger, rng: random.Random) -> None:
    """Take an answer byte by byte, and go before it has come."""
    connection = _connect(server.http)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.sendall(_request() * 3)
    end = time.monotonic() + DAWDLES_S
    while time.monotonic() < end and connection.recv(1):
        time.sleep(0.02)
    _reset(connection)


def dawdle_sending(server: Server, ledger: Ledger, rng: random.Random) -> None:
    """Send a request byte by byte, and go before it is whole."""
    connection = _connect(server.http)
    end = time.monotonic() + DAWDLES_S
    for byte in _request():
        connection.sendall(bytes([byte]))
        time.sleep(0.02)
        if time.monotonic() > end:
            break
    _reset(connection)


def send_nonsense(server: Server, ledger: Ledger, rng: random.Random) -> None:
    """Send what is no request; the answer must say so, or the connection end."""
    nonsense = rng.choice(
        (
            os.urandom(200) + b"\r\n\r\n",
            b"GET /%s HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"a" * 5000),
            b"POST %b/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n" % MODEL,
            b"POST %b/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n{{{{{" % MODEL,
            b"POST %b/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n"
            b"inference-header-content-length: 99\r\n\r\n{}" % MODEL,
            b"GET /v2/models/..%2f..%2fetc HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /v2/models/nobody/ready HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"BREW /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"POST %b/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
            % MODEL,
            b"POST %b/infer HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\n"
            b"content-length: 4\r\n\r\n\x1f\x8b\x08\x00" % MODEL,
        )
    )
    with _connect(server.http) as connection:
        connection.sendall(nonsense)
        connection.shutdown(socket.SHUT_WR)
        told = connection.recv(64)
        if told.startswith(b"HTTP/1.1 5") and not server.wrongs_are_5xx:
            ledger.problem("a 5xx for nonsense", f"{nonsense[:80]!r}: {told!r}")


def cancel(server: Server, ledger: Ledger, rng: random.Random) -> None:
    """Ask over gRPC and think better of it."""
    values = np.zeros((2, 3, 32, 32), np.float32)
    request = pb.ModelInferRequest(model_name="t0", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=values.shape)
    with grpc.insecure_channel(server.grpc) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request)
        time.sleep(rng.random() * 0.01)
        call.cancel()


def send_noise_to_grpc(server: Server, ledger: Ledger, rng: random.Random) -> None:
    """Send what is no HTTP/2 to where it is spoken."""
    connection = _connect(server.grpc)
    connection.sendall(rng.choice((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"")) + os.urandom(300))
    time.sleep(rng.random() * 0.05)
    _reset(connection)


def _require_life(server: Server, ledger: Ledger) -> None:
    """The server says that it lives."""
    try:
        with _connect(server.http) as connection:
            connection.sendall(
                b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            )
            if not connection.recv(64).startswith(b"HTTP/1.1 200"):
                ledger.problem("a server that does not say that it lives")
    except OSError as error:
        ledger.problem("a server that cannot be reached", repr(error))
