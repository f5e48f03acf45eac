"""Progress where there is no terminal: whole lines, now and then, for a log to keep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.progress import TaskID

EVERY_S = 5.0
"""Seconds between two lines of one stage."""


class Progress(Protocol):
    """What shows how far the stages of some work are: rich's bars, or lines."""

    def add_task(
        self, description: str, *, total: float | None, completed: int = 0, note: str
    ) -> TaskID:
        """Begin a stage; ``total`` None if nobody knows how much there is of it."""
        ...

    def update(self, task_id: TaskID, *, completed: float | None = None, note: str = ...) -> None:
        """Say how far a stage is."""
        ...

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Say how much more of a stage is done."""
        ...

    def reset(self, task_id: TaskID, *, total: float | None = None) -> None:
        """Let a stage begin anew."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(slots=True)
class _Stage:
    description: str
    total: float | None
    completed: float
    note: str
    spent_s: float
    """On this stage alone: from each thing that was heard of any stage to the next of this one."""
    began_at: float
    """What was done then: an interrupted stage goes on in the middle."""
    told: float
    """Time of its last line, or of its beginning."""
    pending: bool
    """Whether there is something that no line has said."""


class PlainProgress:
    """A line for a stage every few seconds, when it is complete, and at the end.

    A stage of unknown length gets one line each time its note changes: what it does now may take
    long, and nothing more is heard until it is done.

    Args:
        write: Prints a line.
        now: Seconds, of any clock that does not go back.
    """

    def __init__(
        self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._now = write, now
        self._heard = now()
        """When the latest was heard of any stage."""
        self._stages: list[_Stage] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stage in self._stages:
            if stage.pending:
                self._tell(stage)

    def add_task(
        self, description: str, *, total: float | None, completed: int = 0, note: str
    ) -> TaskID:
        """Begin a stage."""
        now = self._now()
        pending = bool(completed or note)
        stage = _Stage(description, total, completed, note, 0.0, completed, now, pending)
        self._heard = now
        self._stages.append(stage)
        if self._is_due(stage):
            self._tell(stage)
        return TaskID(len(self._stages) - 1)

    def update(
        self, task_id: TaskID, *, completed: float | None = None, note: str | None = None
    ) -> None:
        """Say how far a stage is."""
        stage, now = self._stages[task_id], self._now()
        stage.spent_s += now - self._heard
        self._heard = now
        before = (stage.completed, stage.note)
        stage.completed = stage.completed if completed is None else completed
        stage.note = stage.note if note is None else note
        was_complete = stage.total is not None and before[0] >= stage.total
        if (stage.completed, stage.note) == before or was_complete:
            return
        stage.pending = True
        if self._is_due(stage):
            self._tell(stage)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Say how much more of a stage is done."""
        self.update(task_id, completed=self._stages[task_id].completed + advance)

    def reset(self, task_id: TaskID, *, total: float | None = None) -> None:
        """Let a stage begin anew."""
        stage = self._stages[task_id]
        stage.total, stage.completed, stage.began_at = total, 0, 0
        stage.spent_s, self._heard = 0.0, self._now()

    def _is_due(self, stage: _Stage) -> bool:
        if stage.total is None:
            return bool(stage.note)
        return stage.completed >= stage.total or self._now() - stage.told >= EVERY_S

    def _tell(self, stage: _Stage) -> None:
        self._write(_line(stage))
        stage.told, stage.pending = self._now(), False


def _line(stage: _Stage) -> str:
    """``training: 12/80, 2.5/s, 0:00:27 left, loss 0.512``."""
    if stage.total is None:
        return f"{stage.description}: {stage.note}" if stage.note else stage.description
    parts = [f"{stage.description}: {stage.completed:.0f}/{stage.total:.0f}"]
    done, gone_s = stage.completed - stage.began_at, stage.spent_s
    if done > 0 and gone_s > 0:
        rate = done / gone_s
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
        left_s = (stage.total - stage.completed) / rate
        parts.append(f"{_clock(left_s)} left" if left_s > 0 else f"done in {_clock(gone_s)}")
    return ", ".join([*parts, stage.note] if stage.note else parts)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(59.6), _clock(3725)
    ('0:01:00', '1:02:05')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}"
