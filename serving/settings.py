"""Everything that the server can be told, but what the engine is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .protocol.limits import Limits
from .protocol.tokens import Tokens

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Of one server, for both of its transports."""

    host: str = LOOPBACK
    """Address to listen at; nobody but this machine can reach the default."""
    names: tuple[str, ...] = ()
    """Names that the server may be asked by beside those of this machine, such as a proxy's; of
    meaning where it listens for this machine alone, without a token."""
    port: int = 8000
    """Of HTTP; 0 for any that is free."""
    grpc_port: int | None = None
    """Of gRPC; 0 for any that is free, None for no gRPC."""
    metrics_port: int | None = None
    """Of ``/metrics`` at ``host``, where it needs no token; None leaves it at ``port``, where it
    needs the inference token."""
    tokens: Tokens = field(default_factory=Tokens)
    limits: Limits = field(default_factory=Limits)
    rate_per_s: float | None = None
    """Requests a second that one client may send on average; None for any number."""
    rate_burst: int = 20
    """Requests that it may send at once."""
    decode_threads: int = 2
    """Threads that decode images; each holds one image's pixels."""
    max_decoding: int = 64
    """Requests that may wait for one of them."""
    max_connections: int = 1024
    """Requests under way at once over each transport; more are refused."""
    keep_alive_s: float = 75.0
    """How long a connection of HTTP may be idle between requests, in seconds: longer than proxies
    keep theirs, or they would send a request into one that just ends."""
    max_task_labels: int = 100
    """Tasks with metrics of their own; all others share a label."""
    drain_s: float = 30.0
    """Longest that requests may take to end once the server is told to leave, in seconds."""

    def __post_init__(self) -> None:
        if not self.host.strip():  # the system would take it for every address that it has
            raise ValueError("host must be an address or a name, got an empty one")
        ports = {name: getattr(self, name) for name in ("port", "grpc_port", "metrics_port")}
        for name, port in ports.items():
            if port is not None and not 0 <= port <= 65535:
                raise ValueError(f"{name} must be 0 to 65535, got {port}")
            if port and [*ports.values()].count(port) > 1:
                raise ValueError(f"{name} must be a port of its own, got {port} for two of them")
        for name in ("rate_burst", "decode_threads", "max_decoding", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate_per_s", "keep_alive_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {seconds}")
        for name in ("max_task_labels", "drain_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
