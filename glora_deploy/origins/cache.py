"""The local store of an origin: where it lies, and a block in which it is kept in step."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OriginError
from ..store.store import ArtifactStore
from .bucket import open_bucket
from .fetch import Fetcher

_RETRIES = 2
"""Of one request; whoever follows an origin asks again soon."""
_LEAVE_S = 5.0


def default_cache_dir() -> Path:
    """Where origins are cached if nobody says otherwise: ``glora-deploy`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "glora-deploy"


def cache_place(cache_dir: Path, url: str) -> Path:
    """The folder of one origin's store; origins of other addresses have other ones.

    >>> cache_place(Path("cache"), "s3://models/cats/").name
    'models-cats-05dda63c'
    """
    address = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", address.partition("://")[2])[:80]
    return cache_dir / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


@contextmanager
def kept_in_step(
    url: str, cache_dir: Path, *, budget_bytes: int, poll_s: float, on_demand: bool = False
) -> Iterator[Fetcher]:
    """What follows an origin with a local store: filled before the block, kept so while it lasts.

    Args:
        url: Of the origin.
        cache_dir: Of all origins; made if it is missing.
        budget_bytes: Of the local store.
        poll_s: Seconds between two looks at the origin.
        on_demand: As of ``Fetcher``: the store may then be empty before the block.

    Raises:
        OriginError: If the origin cannot be reached, or refuses, or has nothing published, and
            nothing was fetched before.
        StoreError: If the local store cannot be written.
        MissingDependencyError: If obstore is not installed.
    """
    bucket = open_bucket(url, retries=_RETRIES)
    store = ArtifactStore.create(cache_place(cache_dir, url))
    fetcher = Fetcher(bucket, store, budget_bytes, on_demand=on_demand)
    fetcher.look()
    if not store.tasks() and not (on_demand and fetcher.offered()):
        raise OriginError(
            f"{url}: must publish a version that can be fetched, none is in {store.root} yet: "
            f"{fetcher.reason or 'nothing is published'}"
        )
    thread = threading.Thread(target=fetcher.run, args=(poll_s,), name="glora-fetch", daemon=True)
    thread.start()
    try:
        yield fetcher
    finally:
        fetcher.leave()
        thread.join(_LEAVE_S)
