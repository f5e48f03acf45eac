"""What an unfinished run keeps on disk, in ``<store>/.runs/<task>/``, until it is stored."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glora_deploy.atomic import replace_file
from glora_deploy.errors import ArtifactError
from glora_deploy.paths import Subnet

from .checkpoint import Checkpoint


class RunFolder:
    """Checkpoints and small JSON values of one run; every file is replaced by one rename.

    Args:
        store: Root of the store.
        task: The run's task; one run of a task at a time.
        identity: What must be the same when the run goes on; JSON values.
        resume: Whether to keep what an interrupted run left; otherwise it is removed.

    Raises:
        ValueError: If the interrupted run had another identity; names the first difference.
        ArtifactError: If what it left is damaged.
    """

    def __init__(
        self, store: Path, task: str, identity: Mapping[str, Any], *, resume: bool
    ) -> None:
        self.path = store / ".runs" / task
        self._scratch = store / ".tmp"
        if not resume:
            self.remove()
        self.path.mkdir(parents=True, exist_ok=True)
        identity = json.loads(json.dumps(identity))  # tuples come back from a file as lists
        found = self.remember("run", lambda: identity)
        _require_same(found, identity, str(self.path))

    def checkpoint(self, stage: str) -> Checkpoint:
        """Where a training of this run keeps its state."""
        return Checkpoint(self.path / f"{stage}.safetensors", self._scratch)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """A JSON value, made at most once per run."""
        if (value := self.read(name)) is None:
            value = make()
            self.write(name, value)
        return value

    def read(self, name: str) -> Any:
        """A JSON value that was written, or None."""
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ArtifactError(
                f"{path}: must be JSON ({error}). Start without --resume."
            ) from error

    def write(self, name: str, value: Any) -> None:
        """Keep a JSON value."""
        replace_file(self.path / f"{name}.json", json.dumps(value).encode(), self._scratch)

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.path, ignore_errors=True)


class ScoreMemory:
    """A fitness that remembers on disk, so that a search started again passes over its past.

    Args:
        fitness: Scores a subnet.
        folder: Of the run.
        write_every: New scores between two writes.
    """

    def __init__(
        self, fitness: Callable[[Subnet], float], folder: RunFolder, write_every: int
    ) -> None:
        kept = folder.read("scores") or {"seconds": 0.0, "scores": {}}
        self._fitness = fitness
        self._folder = folder
        self._write_every = write_every
        self._scores: dict[str, float] = kept["scores"]
        self._seconds_before: float = kept["seconds"]
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent on the search, before an interruption and since."""
        return self._seconds_before + time.perf_counter() - self._started

    def __call__(self, subnet: Subnet) -> float:
        """The subnet's fitness, known or new."""
        key = hashlib.sha256(str(subnet).encode()).hexdigest()
        if key not in self._scores:
            self._scores[key] = self._fitness(subnet)
            if len(self._scores) % self._write_every == 0:
                self.write()
        return self._scores[key]

    def write(self) -> None:
        """Keep every score known now; what follows the search may change the weights."""
        self._folder.write("scores", {"seconds": self.seconds, "scores": self._scores})


def _require_same(found: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    for name in sorted(found.keys() | asked.keys()):
        if found.get(name) != asked.get(name):
            raise ValueError(
                f"{where}: to resume, {name} must be {found.get(name)} as in the interrupted run, "
                f"got {asked.get(name)}. Give the same options, or start without --resume."
            )
