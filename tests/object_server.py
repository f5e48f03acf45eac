"""An S3 server on 127.0.0.1, moto's, and a proxy before it that makes what networks make of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

from moto.server import ThreadedMotoServer

from glora_deploy.export.pipeline import ExportConfig
from glora_deploy.origins.fetch import Fetcher
from glora_deploy.origins.s3_bucket import S3Bucket
from glora_deploy.store.store import ArtifactStore

BUCKET = "models"
ONNX = ExportConfig(formats=("merged", "onnx"), n_images=2)
ROOM = 10 * 2**30

Fault = int | Literal["cut", "cut the answer", "truncate", "alter"] | Callable[[], None]
"""A status to answer; what to do to a connection or an answer; or what to do before a request."""


@dataclass
class ObjectServer:
    """The way to a bucket."""

    endpoint: str
    """Of the proxy."""
    port: int
    """Of the server behind it."""

    def __post_init__(self) -> None:
        self.requests: list[str] = []
        """``METHOD /bucket/key STATUS`` of every request, in order; status 0 where none came."""
        self.faults: list[tuple[str, Fault]] = []
        """Pattern of ``METHOD /bucket/key`` and what befalls the next request that matches."""
        self.away = False
        """Whether every connection is cut."""

    def fault_for(self, request: str) -> Fault | None:
        """Take the first fault that is meant for this request."""
        if self.away:
            return "cut"
        for index, (pattern, fault) in enumerate(self.faults):
            if re.search(pattern, request):
                del self.faults[index]
                return fault
        return None

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, list[tuple[str, str]]]:
        """One request to the server itself: status, body, headers."""
        connection = HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body, headers or _SOMEBODY)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheaders()
        finally:
            connection.close()

    def objects(self, prefix: str) -> list[str]:
        """The names of the objects below a prefix."""
        status, body, _ = self.ask("GET", f"/{BUCKET}?list-type=2&prefix={prefix}/")
        assert status == 200
        return [name.removeprefix(f"{prefix}/") for name in _KEY.findall(body.decode())]


@dataclass
class Origin:
    """An origin that nothing was published to yet."""

    objects: ObjectServer
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def bucket(self) -> S3Bucket:
        """A client that tries everything once."""
        return S3Bucket(self.url, retries=0)

    def fetcher(self, cache: Path, budget_bytes: int = ROOM) -> Fetcher:
        return Fetcher(self.bucket(), ArtifactStore.create(cache), budget_bytes)

    def names(self) -> list[str]:
        return self.objects.objects(self.prefix)


_KEY = re.compile("<Key>([^<]*)</Key>")
_SOMEBODY = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}
"""The server tells requests that are signed from those that are not, and believes the signature."""


@contextmanager
def moto_server() -> Iterator[int]:
    """A running server with an empty bucket; its port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        assert ObjectServer("", port).ask("PUT", f"/{BUCKET}")[0] == 200
        yield port
    finally:
        server.stop()


@contextmanager
def before(port: int) -> Iterator[ObjectServer]:
    """A proxy before a server."""
    objects = ObjectServer("", port)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(objects))
    http.daemon_threads = True
    objects.endpoint = f"http://127.0.0.1:{http.server_port}"
    thread = Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield objects
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(objects: ObjectServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path}"
            fault = objects.fault_for(request)
            if isinstance(fault, int):
                objects.requests.append(f"{request} {fault}")
                return self.reply(fault, b"", [])
            if fault == "cut":
                objects.requests.append(f"{request} 0")
                self.close_connection = True
                return None
            if callable(fault):
                fault()
            status, data, headers = objects.ask(
                self.command, self.path, body, dict(self.headers.items())
            )
            objects.requests.append(f"{request} {status}")  # before anybody knows the answer
            if fault == "cut the answer":
                self.close_connection = True
                return None
            return self.reply(status, data, headers, fault)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 # the base class calls these

        def reply(
            self,
            status: int,
            data: bytes,
            headers: list[tuple[str, str]],
            fault: Fault | None = None,
        ) -> None:
            self.send_response(status)
            stated = {name.lower(): value for name, value in headers}
            stated.setdefault("content-length", str(len(data)))
            for name in ("connection", "date", "server", "transfer-encoding"):
                stated.pop(name, None)
            if self.command != "HEAD" and status not in (204, 304):
                stated["content-length"] = str(len(data))
            for name, value in stated.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "truncate":
                data = data[: len(data) // 2]
                self.close_connection = True
            elif fault == "alter":
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            self.wfile.write(data)

    return Handler
