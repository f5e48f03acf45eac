"""Replicas on a Ray cluster, from their start to their end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glora_deploy.errors import StoreError

from ..settings import LOOPBACK
from ..tasks.settings import EngineSettings
from .replica import DEPLOYMENT, replicas_app
from .scale import Scale

OBJECT_STORE_BYTES = 80 * 2**20
_CONNECT_S = 10.0
APP = "glora"
"""Name of the application that the replicas are, on their cluster."""


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

    if cluster is not None:
        _join(cluster)
        if APP in serve.status().applications:
            ray.shutdown()
            raise StoreError(
                f"{cluster}: replicas run there already. To be one more front of them: --attach"
            )
    else:
        ray.init(
            num_cpus=max(2, int((scale.max_replicas or scale.replicas) * scale.cpus) + 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address=LOOPBACK,
        )
    try:
        # Clients reach the front alone: Ray's proxy knows neither limits nor the form of errors.
        serve.start(proxy_location="Disabled")
        app = replicas_app(str(store.resolve()), settings, scale)
        yield serve.run(app, name=APP, route_prefix=None)
    finally:
        if cluster is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        else:
            serve.delete(APP)
        ray.shutdown()


@contextmanager
def attached(cluster: str) -> Iterator[Any]:
    """Join the replicas that another front started; they outlive the block.

    Args:
        cluster: Address of their cluster.

    Yields:
        The handle of their deployment.

    Raises:
        StoreError: If no replicas run there.
    """
    import ray
    from ray import serve

    _join(cluster)
    try:
        if APP not in serve.status().applications:
            raise StoreError(f"{cluster}: must run replicas to attach to, there are none")
        yield serve.get_deployment_handle(DEPLOYMENT, APP)
    finally:
        ray.shutdown()


def _join(cluster: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray

    host, _, port = cluster.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray itself waits for minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(address=cluster, log_to_driver=False, configure_logging=False)
    except OSError as error:
        raise StoreError(f"{cluster}: no Ray cluster could be reached there") from error
