"""What is known of a request once it has ended."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..tasks.contract import Answer

StepName: TypeAlias = Literal["decode", "queue", "swap", "compute"]


_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a request."""

    name: StepName
    start_ns: int
    """Since the epoch."""
    end_ns: int


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Filled while a request goes through; read once, when it has ended."""

    protocol: Literal["http", "grpc"]
    request_id: str
    method: str = "unknown"
    """Of a fixed set: the name of the route or of the remote procedure."""
    path: str = ""
    client: str = ""
    traceparent: str = ""
    """W3C trace context of the caller, as it came."""
    task: str = ""
    """As asked for; of unknown tasks too."""
    version: str = ""
    delta_sha256: str = ""
    call_id: str = ""
    """The client's own id of the call."""
    status: str = ""
    """HTTP's number or gRPC's name."""
    failed: bool = False
    error: str = ""
    n_images: int = 0
    batch_size: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    started_ns: int = field(default_factory=time.time_ns)
    """Since the epoch."""
    ended_ns: int = 0
    steps: list[Step] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """From its first byte to its last."""
        return (self.ended_ns - self.started_ns) * 1e-9

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Note what is done within as decoding."""
        start = time.time_ns()
        try:
            yield
        finally:
            self.steps.append(Step("decode", start, time.time_ns()))

    def answered(self, answer: Answer, submitted_ns: int) -> None:
        """Note who answered, and what the engine spent its time on.

        Args:
            answer: Of the engine.
            submitted_ns: When it was asked, since the epoch.
        """
        self.task, self.version = answer.task, answer.version
        self.delta_sha256, self.batch_size = answer.delta_sha256, answer.batch_size
        self.n_images = len(answer.logits)
        formed_ns = submitted_ns + answer.queue_ns
        # Weights are waited for in the queue: a swap is its last part.
        self.steps += [
            Step("queue", submitted_ns, formed_ns),
            Step("swap", formed_ns - min(answer.swap_ns, answer.queue_ns), formed_ns),
            Step("compute", formed_ns, formed_ns + answer.compute_ns),
        ]

    def step_s(self, name: str) -> float | None:
        """How long a part took in all; None if there was none."""
        found = [step.end_ns - step.start_ns for step in self.steps if step.name == name]
        return sum(found) * 1e-9 if found else None


def request_id(stated: str) -> str:
    """The id that a client stated, if it can stand in a log; else a new one."""
    return stated if _REQUEST_ID.fullmatch(stated) else secrets.token_hex(8)


def traceparent(stated: str) -> str:
    """The trace context that a client stated; empty if it is none."""
    return stated if _TRACEPARENT.fullmatch(stated) else ""
