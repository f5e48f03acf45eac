"""What an unfinished run keeps on disk, in ``<store>/.runs/<task>/``, until it is stored.

A run that asks for the same goes on with it. One that asks for something else is refused as long
as epochs would be lost; only ``restart`` discards them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.glora.forms import Subnet
from glora_deploy.store.atomic_files import replace_file, scratch_folder

from .checkpoint import Checkpoint
from .run_lock import LOCK, hold, require_not_held

IDENTITY = "run"
"""Name of the value that says what was asked for; removed last of all."""


class RunFolder:
    """Checkpoints and small JSON values of one run; every file is replaced by one rename.

    Args:
        store: Root of the store.
        task: The run's task; one run of a task at a time.
    """

    def __init__(self, store: Path, task: str) -> None:
        self.path = store / ".runs" / task
        self._scratch = store / ".tmp"

    def checkpoint(self, stage: str) -> Checkpoint:
        """Where a training of this run keeps its state."""
        return Checkpoint(self.path / f"{stage}.safetensors", self._scratch)

    @property
    def epochs(self) -> int:
        """How many epochs its checkpoints hold; those that cannot be read hold none."""
        total = 0
        for path in self.path.glob("*.safetensors"):
            with suppress(ArtifactError):
                total += Checkpoint(path, self._scratch).epoch
        return total

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """A JSON value, made at most once per run."""
        if (value := self.read(name)) is None:
            value = make()
            self.write(name, value)
        return value

    def read(self, name: str) -> Any:
        """A JSON value that was written, or None.

        Raises:
            ArtifactError: If its file is damaged.
        """
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ArtifactError(
                f"{path}: must be JSON ({error}). Start anew with --restart."
            ) from error

    def write(self, name: str, value: Any) -> None:
        """Keep a JSON value."""
        replace_file(self.path / f"{name}.json", json.dumps(value).encode(), self._scratch)

    def clear(self) -> None:
        """Forget what the run has kept, and stay in the folder."""
        names = {path.name for path in self.path.iterdir()} - {LOCK}
        # What is left of a clearing that was cut short must not pass for another run's.
        for name in sorted(names, key=lambda name: name == f"{IDENTITY}.json"):
            (self.path / name).unlink()

    def remove(self) -> None:
        """Forget the run, in one rename."""
        with scratch_folder(self._scratch) as scratch:
            self.path.rename(scratch / self.path.name)


@contextmanager
def open_run(
    store: Path,
    task: str,
    identity: Mapping[str, Any],
    *,
    resume: bool = False,
    restart: bool = False,
    version: str | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> Iterator[RunFolder]:
    """Have the folder of a task's run alone: empty, or with what the same run left unfinished.

    A block that fails before it has kept an epoch leaves nothing behind.

    Args:
        store: Root of the store.
        task: The run's task.
        identity: What must be the same when the run goes on; JSON values.
        resume: Whether there must be something to go on with.
        restart: Whether what an unfinished run left is discarded.
        version: What the artifact will be called, for others who want to train the task meanwhile.
        tell: Told what is gone on with or discarded.

    Raises:
        StoreError: If another process trains this task, there is nothing to resume, or an
            unfinished run with another identity has kept epochs; names the first difference.
        ArtifactError: If what it left is damaged.
    """
    folder = RunFolder(store, task)
    with hold(folder.path, version=version, tell=tell):
        _begin(folder, json.loads(json.dumps(identity)), resume, restart, tell)
        try:
            yield folder
        except BaseException:
            if folder.path.is_dir() and not folder.epochs:
                folder.clear()
            raise


def require_startable(
    store: Path, task: str, request: Mapping[str, Any], *, resume: bool, restart: bool
) -> None:
    """Refuse now what ``open_run`` would refuse later; nothing is written.

    Args:
        store: Root of the store, which need not exist.
        task: The run's task.
        request: The part of the identity that is known already.
        resume: As for ``open_run``.
        restart: As for ``open_run``.

    Raises:
        StoreError: As ``open_run``.
        ArtifactError: As ``open_run``.
    """
    folder = RunFolder(store, task)
    require_not_held(folder.path)
    if restart:
        return
    found = folder.read(IDENTITY)
    request = json.loads(json.dumps(request))
    known = None if found is None else {n: v for n, v in found.items() if n in request}
    _require_same(folder, known, request, resume)


def _begin(
    folder: RunFolder,
    identity: Mapping[str, Any],
    resume: bool,
    restart: bool,
    tell: Callable[[str], None],
) -> None:
    epochs = folder.epochs
    if restart:
        folder.clear()
        if epochs:
            tell(f"discarded an unfinished run: {_epochs(epochs)}")
    else:
        found = folder.read(IDENTITY)
        if not _require_same(folder, found, identity, resume):
            folder.clear()
        elif epochs:
            tell(f"going on with an unfinished run: {_epochs(epochs)} done")
    folder.remember(IDENTITY, lambda: identity)


def _require_same(
    folder: RunFolder, found: Mapping[str, Any] | None, asked: Mapping[str, Any], resume: bool
) -> bool:
    """Whether an unfinished run is there and was asked for the same.

    Raises:
        StoreError: If there must be one and is none, or one of another kind would be lost.
    """
    if found is None:
        if resume:
            raise StoreError(
                f"{folder.path}: there is no unfinished run to go on with. Leave out --resume to "
                "start one."
            )
        return False
    # tuples come back from a file as lists
    differing = [n for n in sorted(found.keys() | asked.keys()) if found.get(n) != asked.get(n)]
    if differing and (resume or folder.epochs):
        name = differing[0]
        raise StoreError(
            f"{folder.path}: an unfinished run of this task, with {_epochs(folder.epochs)} done, "
            f"has {name} {found.get(name)}, this one asks for {asked.get(name)}. "
            "Give the same options to go on with it, or --restart to discard it."
        )
    return not differing


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


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
