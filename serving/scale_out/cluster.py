"""Replicas on a Ray cluster, from their start to their end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..settings import LOOPBACK
from ..tasks.settings import EngineSettings
from .replica import Scale, replicas_app

OBJECT_STORE_BYTES = 80 * 2**20


@contextmanager
def replicas(
    store: Path, settings: EngineSettings, scale: Scale, *, cluster: str | None = None
) -> Iterator[Any]:
    """Start replicas, and end them.

    Args:
        store: Folder of the store, the same on every machine.
        settings: Of each replica's engine.
        scale: How many.
        cluster: Address of a cluster to join; one on this machine's loopback, without dashboard,
            if None.

    Yields:
        The handle of their deployment, once all of them are ready.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray
    from ray import serve

    if cluster is None:
        ray.init(
            num_cpus=max(2, int((scale.max_replicas or scale.replicas) * scale.cpus) + 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address=LOOPBACK,
        )
    else:
        ray.init(address=cluster, log_to_driver=False, configure_logging=False)
    try:
        # Clients reach the front alone: Ray's proxy knows neither limits nor the form of errors.
        serve.start(proxy_location="Disabled")
        app = replicas_app(str(store.resolve()), settings, scale)
        yield serve.run(app, name="glora", route_prefix=None)
    finally:
        if cluster is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        else:
            serve.delete("glora")
        ray.shutdown()
