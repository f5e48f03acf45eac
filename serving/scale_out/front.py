"""A server whose engine is several replicas: what it may be asked for, and how it gets one.

Ray is imported once it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glora_deploy.errors import MissingDependencyError
from glora_deploy.origins.address import is_address

from ..tasks.settings import EngineSettings
from .scale import Scale

if TYPE_CHECKING:  # what it describes takes long to load
    from ..tasks.contract import TaskEngine


def require_replicas(
    store: str,
    fetch: str,
    *,
    replicas: int | None,
    attach: bool,
    cluster: str | None,
    scaling: Mapping[str, float | None],
) -> None:
    """Refuse options of several replicas that have no effect, or cannot be.

    Raises:
        ValueError: For the first of them; begins with its name.
    """
    if replicas is None and not attach:
        for option, given in (("cluster", cluster), *scaling.items()):
            if given is not None:
                raise ValueError(f"{option} must go with --replicas, which says that there are any")
        return
    if attach:
        if cluster is None:
            raise ValueError("attach must go with --cluster, which says where the replicas are")
        for option, given in (("replicas", replicas), *scaling.items()):
            if given is not None:
                raise ValueError(f"{option} must be left to the front that starts the replicas")
    most = scaling["max-replicas"]
    if most is not None and replicas is not None and most < replicas:
        raise ValueError(f"max-replicas must be at least --replicas {replicas}, got {most}")
    if is_address(store):
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
