"""A server whose engine is several replicas: what it may be asked for, and how it gets one.

Ray is imported once it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from glora_deploy.errors import MissingDependencyError
from glora_deploy.origins.address import is_address

from ..tasks.contract import TaskEngine
from ..tasks.settings import EngineSettings
from .scale import Scale


def require_replicas(
    store: str,
    fetch: str,
    *,
    several: bool,
    attach: bool,
    cluster: str | None,
    max_replicas: int | None,
) -> None:
    """Refuse options of several replicas that have no effect, or cannot be.

    Raises:
        ValueError: For the first of them; begins with its name.
    """
    if not several:
        for option, given in (("cluster", cluster), ("max-replicas", max_replicas)):
            if given is not None:
                raise ValueError(f"{option} must go with --replicas, which says that there are any")
    if attach and cluster is None:
        raise ValueError("attach must go with --cluster, which says where the replicas are")
    if several and is_address(store):
        if cluster is not None:
            raise ValueError("store must be a folder that every machine of the cluster has")
        if fetch != "all":
            raise ValueError("fetch must be all where there are replicas: they read what is there")


@contextmanager
def front_of(
    store: Path,
    settings: EngineSettings,
    scale: Scale,
    *,
    cluster: str | None,
    attach: bool,
) -> Iterator[Callable[[Path, EngineSettings], TaskEngine]]:
    """What makes the engine of a front, while its replicas run."""
    try:
        from .cluster import attached, replicas
        from .routed_engine import RoutedEngine
    except ModuleNotFoundError as error:
        raise MissingDependencyError(str(error.name), "ray", "several replicas") from error
    running = (
        attached(cluster)
        if attach and cluster
        else replicas(store, settings, scale, cluster=cluster)
    )
    with running as handle:
        yield partial(RoutedEngine, handle=handle)
