"""Clients that ask as they should, over HTTP and gRPC, each in turn for any task."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

from .ledger import Answered, Ledger
from .server import Server
from .tasks import Tasks

HANGS_S = 60.0
"""A request that takes longer is taken for lost."""
BY_NAME = 0.15
"""How many requests name a version."""
PER_CONNECTION = 100


async def ask_for_ever(
    server: Server, tasks: Tasks, ledger: Ledger, *, n_clients: int, until: Callable[[], bool]
) -> None:
    """Let half of the clients ask over HTTP and half over gRPC until the time has come."""
    await asyncio.gather(
        *(
            _client(number, server, tasks, ledger, over_grpc=number % 2 == 1, until=until)
            for number in range(n_clients)
        )
    )


async def _client(
    number: int,
    server: Server,
    tasks: Tasks,
    ledger: Ledger,
    *,
    over_grpc: bool,
    until: Callable[[], bool],
) -> None:
    rng = random.Random(number)
    module: Any = triton_grpc if over_grpc else triton_http
    while not until():
        async with module.InferenceServerClient(
            server.grpc if over_grpc else server.http
        ) as client:
            for _ in range(PER_CONNECTION):
                if until():
                    return
                await _ask_once(client, module, server, tasks, ledger, rng)


async def _ask_once(
    client: Any, module: Any, server: Server, tasks: Tasks, ledger: Ledger, rng: random.Random
) -> None:
    task = tasks.names[min(int(rng.expovariate(0.3)), len(tasks.names) - 1)]
    offered = ledger.offered(task)
    asked = rng.choice(offered) if offered and rng.random() < BY_NAME else None
    rows = tuple(rng.sample(range(len(tasks.images)), rng.randint(1, 3)))
    tensor = module.InferInput("image", [len(rows), *tasks.images.shape[1:]], "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(tasks.images[list(rows)]))
    named = {} if asked is None else {"model_version": server.asked_by(task, asked)}
    outputs = [module.InferRequestedOutput("logits")]
    sent = time.monotonic()
    call: Awaitable[Any] = client.infer(task, [tensor], outputs=outputs, **named)
    try:
        result = await asyncio.wait_for(call, HANGS_S)
    except TimeoutError:
        ledger.problem("a request without an answer", f"{task} after {HANGS_S} s")
    except InferenceServerException as error:
        status, text = str(error.status()), str(error.message())
        ledger.refused(task, asked, sent, time.monotonic(), status, text)
    except (aiohttp.ClientError, OSError) as error:
        ledger.lost(task, sent, repr(error))
    else:
        ledger.answered(to_answered(server, result, task=task, asked=asked, rows=rows, sent=sent))


def to_answered(
    server: Server, result: Any, *, task: str, asked: str | None, rows: tuple[int, ...], sent: float
) -> Answered:
    """What a client's result says; it counts as received now.

    Args:
        server: That answered.
        result: ``InferResult`` of tritonclient's HTTP or gRPC client, with ``logits``
            ``(len(rows), n_classes)`` in float32.
        task: That was asked.
        asked: The version that was asked for, None if the current one.
        rows: Which of the storm's images were sent, in this order.
        sent: When, in seconds of ``time.monotonic()``.
    """
    response = result.get_response()
    return Answered(
        task=task,
        asked=asked,
        rows=rows,
        sent=sent,
        received=time.monotonic(),
        version=server.version_of(task, _field(response, "model_version")),
        digest=_parameter(response, "delta_sha256"),
        logits=result.as_numpy("logits"),
    )


def _field(response: Any, name: str) -> str:
    return str(response[name] if isinstance(response, dict) else getattr(response, name))


def _parameter(response: Any, name: str) -> str | None:
    """Of an answer's parameters; None where the server sends none of this name."""
    if isinstance(response, dict):
        value = response.get("parameters", {}).get(name)
        return None if value is None else str(value)
    parameters = response.parameters
    return str(parameters[name].string_param) if name in parameters else None
