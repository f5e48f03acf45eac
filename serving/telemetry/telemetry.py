"""Each request that ended goes to the counts, the log and the traces."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .access_log import log_request
from .metrics import Metrics
from .request_record import RequestRecord

if TYPE_CHECKING:
    from .tracing import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Where records of requests go."""

    metrics: Metrics
    tracing: Tracing | None = None

    def started(self, record: RequestRecord) -> None:
        """A request has come."""
        self.metrics.started(record.protocol)

    def finished(self, record: RequestRecord) -> None:
        """A request has ended; its end is now."""
        record.ended_ns = time.time_ns()
        self.metrics.finished(record)
        log_request(record)
        if self.tracing is not None:
            self.tracing.finished(record)

    def close(self) -> None:
        """Send what waits."""
        if self.tracing is not None:
            self.tracing.close()
