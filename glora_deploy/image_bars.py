"""Progress of commands that go through images, a bar for each network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from .plain_progress import Progress


class ImageBars:
    """A bar for each name, from when it is first heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, name: str, done: int, total: int) -> None:
        """This many images of so many are done under this name."""
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, note="")
        self._progress.update(self._bars[name], completed=done)
