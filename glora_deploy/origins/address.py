"""How an origin is named: ``s3://BUCKET/PREFIX`` or ``hf://USER/REPO``. Imports nothing heavy."""

from __future__ import annotations

import re

from ..errors import OriginError

_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*/?")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB = re.compile(rf"hf://({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?/?")


def is_address(text: str) -> bool:
    """Whether this names an origin, not a folder."""
    return "://" in text


def is_on_hub(url: str) -> bool:
    """Whether an address is that of a repository on the Hugging Face Hub."""
    return url.startswith("hf://")


def require_address(url: str) -> str:
    """The address of an origin.

    Raises:
        OriginError: If it is none.
    """
    if not (_S3.fullmatch(url) or _HUB.fullmatch(url)):
        raise OriginError(
            "an origin must be s3://BUCKET or s3://BUCKET/PREFIX, with letters, digits and "
            f". _ = - in the prefix, or hf://USER/REPO or hf://USER/REPO@BRANCH, got {url!r}"
        )
    return url


def repo_and_branch(url: str) -> tuple[str, str]:
    """The repository of an address on the Hub, and its branch.

    >>> repo_and_branch("hf://ann/tasks@staging")
    ('ann/tasks', 'staging')

    Raises:
        OriginError: If it is none.
    """
    found = _HUB.fullmatch(require_address(url))
    if found is None:
        raise OriginError(f"must be on the Hub, got {url!r}")
    return found[1], found[2] or "main"
