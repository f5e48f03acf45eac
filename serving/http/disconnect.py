"""An answer that is waited for only as long as its client is there."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from ..service import Service
from ..tasks.contract import Answer, InferRequest
from ..telemetry.request_record import RequestRecord


async def answer_while_connected(
    service: Service, request: Request, record: RequestRecord, asked: InferRequest
) -> Answer:
    """Ask the engine; a client that goes takes its request out of the queue.

    Args:
        service: Of the server.
        request: Its body has been read.
        record: Of the request.
        asked: What to ask.

    Raises:
        ClientDisconnect: If the client went.
        ServingError: Of the engine.
    """
    waiting = asyncio.ensure_future(service.answer(record, asked))
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise ClientDisconnect
    finally:
        for task in (gone, waiting):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _disconnect(request: Request) -> None:
    """Return once the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
