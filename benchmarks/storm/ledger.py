"""What may be answered, and what was: every answer is compared with what its version computes."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ATOL = 1e-3
"""Of logits whose spread is above ten: float32 sums in another order differ by 1e-5."""
MAX_EXAMPLES = 5
MAX_OFFERED = 4


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a task, and what it computes."""

    task: str
    version: str
    digest: str
    logits: NDArray[np.float64]
    """Of each image that clients send."""


@dataclass(slots=True)
class _Span:
    """When a version may answer for its task where none is named, in seconds of the clock."""

    version: str
    since: float
    until: float = float("inf")


@dataclass(slots=True)
class Answered:
    """What came back of one request."""

    task: str
    asked: str | None
    """The version that was asked for."""
    rows: tuple[int, ...]
    """Which images were sent."""
    sent: float
    received: float
    version: str
    digest: str | None
    """None where the server does not say."""
    logits: NDArray[np.float32]


@dataclass
class Ledger:
    """What happened; every method may be called from any thread.

    Args:
        refusals: Patterns of error texts that a server may answer with while it works as it must.
    """

    refusals: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    _published: dict[tuple[str, str], list[Published]] = field(default_factory=dict)
    _offered: dict[str, list[str]] = field(default_factory=dict)
    _spans: dict[str, list[_Span]] = field(default_factory=dict)
    _away: dict[str, list[_Span]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def publish(self, one: Published) -> None:
        """A version exists from now on; another under the same name is another version."""
        with self._lock:
            self._published.setdefault((one.task, one.version), []).append(one)

    def knows(self, task: str, version: str) -> bool:
        """Whether such a version was published."""
        with self._lock:
            return (task, version) in self._published

    def may_answer(self, task: str, version: str, *, since: float | None = None) -> None:
        """From then on, now by default, it may answer for its task, as others may already."""
        span = _Span(version, time.monotonic() if since is None else since)
        with self._lock:
            self._spans.setdefault(task, []).append(span)

    def answers_alone(self, task: str, version: str, *, in_s: float = 0.0) -> None:
        """No other version may answer requests that are sent after so many seconds."""
        with self._lock:
            now = time.monotonic()
            for span in self._spans.get(task, ()):
                if span.version != version:
                    span.until = min(span.until, now + in_s)
            self._spans[task] = [
                span for span in self._spans.get(task, ()) if span.until > now - 120
            ]

    def count(self, what: str) -> None:
        """One more of what is no problem."""
        with self._lock:
            self.counts[what] += 1

    def problem(self, what: str, example: str = "") -> None:
        """One more of what must not be."""
        with self._lock:
            self.problems[what] += 1
            shown = self.examples.setdefault(what, [])
            if example and len(shown) < MAX_EXAMPLES:
                shown.append(example)

    def offer(self, task: str, version: str) -> None:
        """Clients may ask for this version by name."""
        with self._lock:
            self._offered.setdefault(task, []).append(version)
            del self._offered[task][:-MAX_OFFERED]

    def offered(self, task: str) -> list[str]:
        """Versions that clients may ask for, oldest first."""
        with self._lock:
            return list(self._offered.get(task, ()))

    def leaves(self, task: str) -> None:
        """From now on a task may be refused, until ``is_back``."""
        with self._lock:
            self._away.setdefault(task, []).append(_Span("", time.monotonic()))

    def is_back(self, task: str) -> None:
        """Requests that are sent from now on must be answered."""
        with self._lock:
            self._away[task][-1].until = time.monotonic()
            del self._away[task][:-MAX_OFFERED]

    def refused(
        self, task: str, asked: str | None, sent: float, received: float, status: str, text: str
    ) -> None:
        """An error instead of an answer: of a task that is away, or of a version by name."""
        with self._lock:
            away = any(
                span.since <= received and span.until >= sent for span in self._away.get(task, ())
            )
        if (away or asked) and any(re.search(pattern, text) for pattern in self.refusals):
            self.count(f"refused as it must be: {status}")
        else:
            self.problem(
                "an error that nobody expects",
                f"{task}, asked for {asked}, away {away}: {status} {text[:200]}",
            )

    def lost(self, task: str, sent: float, what: str) -> None:
        """A connection ended instead of an answer."""
        self.problem("a connection lost", f"{task}: {what}")

    def answered(self, answer: Answered) -> None:
        """Judge an answer by what the version that it names computes."""
        with self._lock:
            versions = list(self._published.get((answer.task, answer.version), ()))
            spans = list(self._spans.get(answer.task, ()))
            self.latencies.append(answer.received - answer.sent)
        where = f"{answer.task}/{answer.version}, asked for {answer.asked}"
        if not versions:
            self.problem("an answer of a version that was never published", where)
            return
        named = [one for one in versions if answer.digest in (None, one.digest)]
        if not named:
            self.problem("a digest that is not the version's", f"{where}: {answer.digest}")
            return
        if not any(_equal(answer, one) for one in named):
            self.problem(self._whose(answer), where)
            return
        if answer.asked is not None and answer.asked != answer.version:
            self.problem("an answer of another version than was asked for", where)
            return
        may = {
            span.version
            for span in spans
            if span.since <= answer.received and span.until >= answer.sent
        }
        if answer.asked is None and answer.version not in may:
            self.problem("an answer of a version that was not current", f"{where}: {sorted(may)}")
            return
        self.count("right answers")

    def _whose(self, answer: Answered) -> str:
        """What kind of wrong answer it is."""
        with self._lock:
            others = [one for versions in self._published.values() for one in versions]
        for one in others:
            if _equal(answer, one):
                same = one.task == answer.task
                return "an answer of another version" if same else "an answer of another task"
        return "an answer that no version gives"


def _equal(answer: Answered, one: Published) -> bool:
    expected = one.logits[list(answer.rows)]
    return expected.shape == answer.logits.shape and bool(
        np.allclose(answer.logits, expected, rtol=0, atol=ATOL)
    )
