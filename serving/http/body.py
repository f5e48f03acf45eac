"""A request's bytes: counted as they come, decompressed within the same limit."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from ..errors import InputError, TooLargeError
from ..protocol.datatypes import quoted
from ..protocol.limits import Limits
from .errors import HttpError

ENCODINGS = "gzip, deflate"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_COMPRESSION_LEVEL = 1  # logits hardly shrink further


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body, decompressed as ``content-encoding`` says.

    Raises:
        TooLargeError: If there are more bytes than the limit, on the wire or decompressed.
        InputError: If they are not of that encoding.
        HttpError: 501, if that encoding is none of ``ENCODINGS``; 408, if they come too slowly.
        ClientDisconnect: If the client went.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", *_WINDOW_BITS):
        raise HttpError(
            501,
            f"content-encoding must be one of {ENCODINGS}, got {quoted(encoding)}",
            {"accept-encoding": ENCODINGS},
        )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limits.max_body_bytes:
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    started_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(limits.receive_s) as deadline:
            async for part in _parts(request):
                size += len(part)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                parts.append(part)
                deadline.reschedule(started_s + limits.may_take_s(size))
    except TimeoutError as error:
        raise HttpError(
            408,
            f"the body must come within {limits.receive_s:g} s, and a second more for each "
            f"{limits.slowest_bytes_per_s:,} bytes; got {size:,} bytes by then",
            {"connection": "close"},
        ) from error
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    if encoding in _WINDOW_BITS:
        return decompress(body, encoding, limits)
    return body


def decompress(body: bytes, encoding: str, limits: Limits) -> bytes:
    """What a compressed body holds.

    Args:
        body: One stream, and nothing behind it.
        encoding: ``gzip``, or ``deflate``, which on the web is zlib's format.
        limits: Of the result.

    Raises:
        TooLargeError: If it holds more than the limit; no more than that is made.
        InputError: If it is damaged, cut, or goes on behind its end.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        whole = stream.decompress(body, limits.max_body_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body must be {encoding}, but it is damaged") from error
    if len(whole) > limits.max_body_bytes:
        raise _too_large(limits)
    if not stream.eof or stream.unused_data:
        raise InputError(f"the body must be one whole {encoding} stream")
    return whole


def compress(body: bytes, encoding: str) -> bytes:
    """A body as one of ``ENCODINGS``."""
    stream = zlib.compressobj(_COMPRESSION_LEVEL, wbits=_WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()


def accepted_encoding(accept: str) -> str | None:
    """The first of ``ENCODINGS`` that an ``accept-encoding`` header names; None for plain bytes."""
    for part in accept.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in _WINDOW_BITS and weight.replace(" ", "") not in ("q=0", "q=0.0"):
            return name.strip()
    return None


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """As they come; without the copy that joining costs, where there is one part only."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        if part:
            yield part
        if not message.get("more_body", False):
            return


def _too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(f"the body must have at most {limits.max_body_bytes:,} bytes")
