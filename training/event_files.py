"""Event files for TensorBoard: the numbers of the history, written while they come about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora_deploy.errors import MissingDependencyError
from glora_deploy.store.history import EpochRecord

from .run_folder import RunFolder
from .search import Scored
from .setting_error import SettingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SEARCH = "search"


def require_event_files(folder: Path) -> None:
    """Refuse a wish for event files that cannot be met; nothing is written.

    Args:
        folder: As ``--tensorboard`` names it; need not exist.

    Raises:
        MissingDependencyError: If tensorboard is not installed.
        SettingError: If a file is in the way, or it may not be written to.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("tensorboard", "report", "--tensorboard") from error
    place = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise SettingError(
            f"tensorboard must be a folder that can be written to, {place} cannot", "tensorboard"
        )


class EventFiles:
    """Scalars in ``<folder>/<task>/<start of the run>/<stage>``; nothing without a folder.

    A run that is gone on with writes where it began. What it had written there is replaced by
    what it has kept, so no epoch is missing or there twice.

    Args:
        folder: As ``--tensorboard`` names it; None writes nothing.
        task: The run's task.
        run: Remembers when the run started.
    """

    def __init__(self, folder: Path | None, task: str, run: RunFolder) -> None:
        self._writers: dict[str, SummaryWriter] = {}
        self._place: Path | None = None
        self._fitness: list[float] = []
        if folder is not None:
            started = run.remember("events", lambda: f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
            self._place = folder / task / started

    def begin(self, stage: str, epochs: Sequence[EpochRecord]) -> None:
        """Start a stage, with the epochs that it has kept."""
        for epoch in epochs:
            self.epoch(stage, epoch)

    def epoch(self, stage: str, epoch: EpochRecord) -> None:
        """What an epoch came to."""
        values = epoch.model_dump()
        self._add(stage, values.pop("epoch"), values)

    def validation(self, stage: str, after_epoch: int, accuracy: float) -> None:
        """A measurement on the validation split, top-1, 0 to 1."""
        self._add(stage, after_epoch, {"val_accuracy": accuracy})

    def generation(self, generation: Sequence[Scored[Any]]) -> None:
        """The fitness of the subnets that are new in one generation of the search."""
        values = [each.fitness for each in generation if each.whole]
        self._fitness.append(max(values + self._fitness[-1:]))
        self._add(SEARCH, len(self._fitness), {"best_so_far": self._fitness[-1]})

    def close(self) -> None:
        """Write what is still to be written."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        if self._place is None:
            return
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # Readers drop what older files of the stage say from this step on: everything.
            self._writers[stage] = SummaryWriter(str(self._place / stage), purge_step=0)
        for name, value in scalars.items():
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()
