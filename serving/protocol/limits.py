"""How large a request may be, and how long it may wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glora_deploy.data.pixel_limit import MAX_PIXELS

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of every request, whatever it comes over."""

    max_body_bytes: int = 64 * MEBIBYTE
    """Of a request, and of what it decompresses to."""
    max_pixels: int = MAX_PIXELS
    """Of one encoded image, by its header, before anything is decoded."""
    max_image_bytes: int = 20 * MEBIBYTE
    """Of one encoded image."""
    max_json_depth: int = 100
    """Brackets within brackets in JSON."""
    max_id_chars: int = 256
    """Of the id of a call."""
    receive_s: float = 20.0
    """How long a client may take to send the headers of a request; as long for its body, and to
    take the answer, and a second more for each ``slowest_bytes_per_s`` of those."""
    slowest_bytes_per_s: int = 64 << 10
    """Of a client that is worth waiting for."""
    max_wait_s: float = 30.0
    """A request that has not reached a batch by then fails, whatever it asked for, in seconds."""

    def __post_init__(self) -> None:
        for field in (
            "max_body_bytes",
            "max_image_bytes",
            "max_json_depth",
            "max_id_chars",
            "slowest_bytes_per_s",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"max_pixels must be 1 to {MAX_PIXELS:,}, got {self.max_pixels}")
        for field in ("receive_s", "max_wait_s"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be above 0 and finite, got {getattr(self, field)}")

    def may_take_s(self, n_bytes: int) -> float:
        """How long a client may take for so many bytes, in seconds."""
        return self.receive_s + n_bytes / self.slowest_bytes_per_s
