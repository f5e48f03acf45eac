"""How an origin is named: ``s3://BUCKET/PREFIX``. Imports nothing heavy."""

from __future__ import annotations

import re

from ..errors import OriginError

_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*/?")


def is_address(text: str) -> bool:
    """Whether this names an origin, not a folder."""
    return "://" in text


def require_address(url: str) -> str:
    """The address of an origin.

    Raises:
        OriginError: If it is none.
    """
    if not _ADDRESS.fullmatch(url):
        raise OriginError(
            f"an origin must be s3://BUCKET or s3://BUCKET/PREFIX, with letters, digits and "
            f". _ = - in the prefix, got {url!r}"
        )
    return url
