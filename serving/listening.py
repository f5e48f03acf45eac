"""A socket for a server, taken before anything slow is done."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody is answered from yet.

    Raises:
        OSError: If the address is in use or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets that name TCP alone. With it, a body waits for
    # the acknowledgement of its headers, which clients put off for 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
