"""How often one client may ask: a bucket of tokens for each, and a bounded number of buckets."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from .errors import ServingError


class RateLimitError(ServingError):
    """A client asked too often.

    Args:
        message: One line.
        retry_after_s: When its next request will be taken, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimit:
    """Lets each client ask ``burst`` times at once, and ``per_s`` times a second on average.

    For use from one thread, the event loop's.

    Args:
        per_s: Requests a second.
        burst: Requests at once.
        most_clients: Clients that are remembered; the one that asked longest ago is forgotten.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        per_s: float,
        burst: int,
        *,
        most_clients: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_s, self._burst = per_s, burst
        self._most, self._clock = most_clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request.

        Raises:
            RateLimitError: If it is one too many.
        """
        now = self._clock()
        left, since = self._buckets.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._per_s)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        if not allowed:
            raise RateLimitError(
                f"too many requests: at most {self._per_s:g} a second and {self._burst} at once",
                (1 - left) / self._per_s,
            )
