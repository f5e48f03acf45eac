"""Requests that a browser sends for another site's page, which its user never meant to send.

A page of any site can make a browser on this machine ask ``127.0.0.1``; and a site whose name its
owner lets stand for 127.0.0.1 can read the answers too, for to the browser they are its own. Where
a token is asked for, neither has it. Other clients than browsers can say what they like, and gain
nothing by it.
"""

from __future__ import annotations

from ipaddress import ip_address

from starlette.datastructures import Headers

from ..settings import ServerSettings
from .errors import HttpError

_READS = frozenset(("GET", "HEAD"))


def require_own_site(method: str, headers: Headers, settings: ServerSettings) -> None:
    """Raise if another site's page asks, as far as its browser says so.

    Args:
        method: Of the request.
        headers: Of the request.
        settings: Of the server. The name that it was asked by is looked at where it listens for
            this machine alone, without a token.

    Raises:
        HttpError: 403, for another site's page; 421, if the server was asked by a strange name.
    """
    if method not in _READS and headers.get("sec-fetch-site") == "cross-site":
        raise HttpError(403, "a page of another site must not ask")
    if settings.tokens.inference is None and is_loopback(settings.host):
        name = name_of(headers.get("host", ""))
        if not is_loopback(name) and name not in settings.names:
            raise HttpError(
                421,
                f"host must be localhost or an address of this machine, got {name[:64]!a}: "
                "allow this name with --name, or ask for a token with --token-file",
            )


def name_of(host: str) -> str:
    """The name in a ``host`` header, in lower case, without its port.

    >>> name_of("LocalHost:8000"), name_of("[::1]:8000"), name_of("::1")
    ('localhost', '::1', '::1')
    """
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def is_loopback(name: str) -> bool:
    """Whether a name or an address means this machine, whatever anybody else says.

    >>> is_loopback("localhost"), is_loopback("127.1.2.3"), is_loopback("localhost.example")
    (True, True, False)
    """
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
