"""What HTTP and gRPC cost beside the engine itself, for one image of ViT-B/16's size.

The server runs in a process of its own over an engine that answers at once, so that nothing but
the transport is timed: parsing, the queue's hand-over, the answer. Each way is timed once per
round, in turn, over one connection, with NVIDIA's client as it is installed::

    python benchmarks/serving_http.py
    python benchmarks/serving_http.py --size 32 --rounds 50

``engine`` is the same call within the server's process, without a transport. The overhead is the
median of a way minus that of the engine. ``raw socket`` is the same HTTP request written by hand:
what is left when the client's own work is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from queue import SimpleQueue
from statistics import median, quantiles
from threading import Thread
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from numpy.typing import NDArray

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.serving.errors import UnknownTaskError
from glora_deploy.serving.grpc.server import serve_grpc
from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.http.server import HttpServer
from glora_deploy.serving.listening import bind
from glora_deploy.serving.protocol.infer import plan_call, to_images, to_reply
from glora_deploy.serving.protocol.limits import Limits
from glora_deploy.serving.protocol.tensors import InferCall, Tensor
from glora_deploy.serving.settings import ServerSettings
from glora_deploy.serving.tasks.contract import Answer, InferRequest, ServedVersion, Usage

TASK = "pets"
N_CLASSES = 37
LIMIT_MS = 4.0


class InstantEngine:
    """Answers with the same logits from a thread of its own, as an engine does, at once."""

    max_batch = 16
    ready = True

    def __init__(self, size: int) -> None:
        self._logits = np.zeros((1, N_CLASSES), np.float32)
        self._served = ServedVersion(
            task=TASK,
            version="v1",
            is_current=True,
            state="READY",
            delta_sha256="0" * 64,
            backbone="none",
            labels=tuple(str(index) for index in range(N_CLASSES)),
            preprocessing=Preprocessing(
                size=(size, size),
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                interpolation="bicubic",
                crop_pct=0.9,
                crop_mode="center",
            ),
            input_shape=(3, size, size),
        )
        self._queue: SimpleQueue[tuple[InferRequest, Future[Answer]]] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()

    def tasks(self) -> list[str]:
        """The one task."""
        return [TASK]

    def versions(self, task: str | None = None) -> list[ServedVersion]:
        """The one version."""
        return [self._served]

    def describe(self, task: str, version: str | None = None) -> ServedVersion:
        """The one version."""
        if task != TASK or version not in (None, "v1"):
            raise UnknownTaskError("there is none")
        return self._served

    def submit(self, request: InferRequest) -> Future[Answer]:
        """Queue a request."""
        future: Future[Answer] = Future()
        self._queue.put((request, future))
        return future

    def statistics(self, task: str | None = None, version: str | None = None) -> list[Any]:
        """None are kept."""
        return []

    def usage(self) -> Usage:
        """Nothing is held."""
        return Usage(
            queued=0, in_flight=0, weights_bytes=0, budget_bytes=0, backbone_bytes=0, swaps=0,
            merge_ns=0, evictions=0,
        )  # fmt: skip

    def _work(self) -> None:
        while True:
            _, future = self._queue.get()
            if future.set_running_or_notify_cancel():
                future.set_result(
                    Answer(
                        logits=self._logits,
                        task=TASK,
                        version="v1",
                        delta_sha256="0" * 64,
                        queue_ns=0,
                        swap_ns=0,
                        compute_ns=0,
                        batch_size=1,
                    )
                )


def serve(size: int, pipe: Connection) -> None:
    """Serve over both transports; time the engine alone whenever the pipe asks for it."""
    engine: Any = InstantEngine(size)
    settings = ServerSettings(grpc_port=0)
    app = build_app(engine, settings)
    bound = bind("127.0.0.1", 0)
    bound.listen()
    images = np.zeros((1, 3, size, size), np.float32)
    call = InferCall(
        model=TASK,
        inputs=(Tensor(name="image", datatype="FP32", shape=images.shape, values=images),),
    )
    limits = Limits()

    def direct() -> None:
        plan = plan_call(engine, call, limits, time.monotonic())
        answer = engine.submit(plan.request(to_images(plan, limits))).result()
        to_reply(engine, plan, answer)

    async def run() -> None:
        grpc = await serve_grpc(app.state.service)
        pipe.send((bound.getsockname()[1], grpc.port))
        loop = asyncio.get_running_loop()

        def asked() -> None:
            pipe.recv()
            started = time.perf_counter()
            direct()
            pipe.send(time.perf_counter() - started)

        loop.add_reader(pipe.fileno(), asked)
        await HttpServer(app, settings).serve([bound])

    asyncio.run(run())


def http_call(port: int, images: NDArray[np.float32]) -> Callable[[], None]:
    """One request with NVIDIA's client of HTTP."""
    client = triton_http.InferenceServerClient(f"127.0.0.1:{port}")
    output = triton_http.InferRequestedOutput("logits", binary_data=True)

    def ask() -> None:
        sent = triton_http.InferInput("image", list(images.shape), "FP32")
        sent.set_data_from_numpy(images)
        assert client.infer(TASK, [sent], outputs=[output]).as_numpy("logits") is not None

    return ask


def grpc_call(port: int, images: NDArray[np.float32]) -> Callable[[], None]:
    """One request with NVIDIA's client of gRPC."""
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{port}")
    output = triton_grpc.InferRequestedOutput("logits")

    def ask() -> None:
        sent = triton_grpc.InferInput("image", list(images.shape), "FP32")
        sent.set_data_from_numpy(images)
        assert client.infer(TASK, [sent], outputs=[output]).as_numpy("logits") is not None

    return ask


def raw_call(port: int, images: NDArray[np.float32]) -> Callable[[], None]:
    """The same request over a socket, written once."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw = images.tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": images.shape,
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    request = (
        f"POST /v2/models/{TASK}/infer HTTP/1.1\r\nhost: localhost\r\n"
        f"inference-header-content-length: {len(head)}\r\n"
        f"content-length: {len(head) + len(raw)}\r\n\r\n"
    ).encode() + head + raw  # fmt: skip

    def ask() -> None:
        connection.sendall(request)
        got = b""
        while b"\r\n\r\n" not in got:
            got += connection.recv(65536)
        top, _, body = got.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 200"), top
        length = int(top.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)

    return ask


def main() -> None:
    """Time every way in turn, and print medians and overheads."""
    parser = argparse.ArgumentParser(description="What HTTP and gRPC cost beside the engine.")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(arguments.size, theirs), daemon=True)
    server.start()
    http_port, grpc_port = ours.recv()
    images = np.random.default_rng(0).normal(size=(1, 3, arguments.size, arguments.size))
    images = images.astype(np.float32)

    def engine() -> float:
        ours.send(None)
        taken: float = ours.recv()
        return taken

    ways: dict[str, Callable[[], None]] = {
        "HTTP, tritonclient": http_call(http_port, images),
        "HTTP, raw socket": raw_call(http_port, images),
        "gRPC, tritonclient": grpc_call(grpc_port, images),
    }
    times: dict[str, list[float]] = {"engine": []} | {name: [] for name in ways}
    for _ in range(20):  # until everything is loaded and every connection is warm
        engine()
        for ask in ways.values():
            ask()
    for _ in range(arguments.rounds):
        times["engine"].append(engine())
        for name, ask in ways.items():
            started = time.perf_counter()
            ask()
            times[name].append(time.perf_counter() - started)
    server.kill()
    base = median(times["engine"]) * 1e3
    print(f"one image of 3 x {arguments.size} x {arguments.size}, {arguments.rounds} rounds")
    print(f"{'':20} {'p50 ms':>8} {'p95 ms':>8} {'overhead at p50':>16}")
    for name, taken in times.items():
        p50, p95 = median(taken) * 1e3, quantiles(taken, n=20)[18] * 1e3
        over = "" if name == "engine" else f"{p50 - base:.2f} ms"
        print(f"{name:20} {p50:8.2f} {p95:8.2f} {over:>16}")
    worst = max(median(times[name]) * 1e3 - base for name in ways)
    print(f"largest overhead: {worst:.2f} ms of {LIMIT_MS:g} allowed ({worst / LIMIT_MS:.2f})")


if __name__ == "__main__":
    main()
