"""How many replicas there are. Imports no ray."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many replicas there are, and when there are more."""

    replicas: int = 2
    """At the start, and at least."""
    max_replicas: int | None = None
    """At most; as many as at the start if None."""
    target_ongoing: float = 8.0
    """Requests in work at each replica that more replicas are started to keep to."""
    cpus: float = 1.0
    """Reserved for each replica."""
    upscale_delay_s: float = 30.0
    """That they must be busy before there are more."""
    downscale_delay_s: float = 600.0
    """That they must be idle before there are fewer."""
