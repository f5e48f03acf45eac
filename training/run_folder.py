"""What an unfinished run keeps on disk, in ``<store>/.runs/<task>/``, until it is stored.

A run that asks for the same goes on with it. One that asks for something else is refused as long
as epochs would be lost; only ``restart`` discards them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.store.atomic_files import replace_file, scratch_folder

from .checkpoint import Checkpoint
from .run_lock import LOCK, hold, require_not_held
from .search import Fitness, Score, Worthwhile

IDENTITY = "run"
"""Name of the value that says what was asked for; removed last of all."""


MEASURED = {"splits": "the images", "backbone fingerprint": "the weights of the backbone"}
"""Values of the identity that nobody chose: digests, which say nothing to people."""


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
        """How many epochs its checkpoints hold.

        Raises:
            ArtifactError: If one of them cannot be read.
        """
        paths = sorted(self.path.glob("*.safetensors"))
        return sum(Checkpoint(path, self._scratch).epoch for path in paths)

    @property
    def keeps_epochs(self) -> bool:
        """Whether epochs would be lost with it; those that cannot be read just now may be whole."""
        try:
            return self.epochs > 0
        except ArtifactError:
            return True

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
            if folder.path.is_dir() and not folder.keeps_epochs:
                folder.clear()
            raise


def require_writable(store: Path) -> None:
    """Refuse a store that no run could write into; nothing is written.

    Args:
        store: Root of the store, which need not exist.

    Raises:
        StoreError: If a file is in its way, or it may not be written to.
    """
    place = next(each for each in (store, *store.absolute().parents) if os.path.lexists(each))
    if not place.is_dir():
        raise StoreError(f"{store}: the store must be a folder, {place} is none")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StoreError(
            f"{store}: the store must be a folder that can be written to, {place} cannot. "
            "Give another --store, or change its permissions."
        )


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
    if restart:
        kept = _kept(folder)
        folder.clear()
        if kept:
            tell(f"discarded an unfinished run: {kept}")
    else:
        found = folder.read(IDENTITY)
        if not _require_same(folder, found, identity, resume):
            folder.clear()
        elif epochs := folder.epochs:
            tell(f"going on with an unfinished run: {_epochs(epochs)} done")
    folder.remember(IDENTITY, lambda: identity)


def _require_same(
    folder: RunFolder, found: Mapping[str, Any] | None, asked: Mapping[str, Any], resume: bool
) -> bool:
    """Whether an unfinished run is there and was asked for the same.

    Raises:
        StoreError: If there must be one and is none, or one of another kind would be lost.
        ArtifactError: If what it kept cannot be read, and so neither gone on with nor counted.
    """
    if found is None:
        if resume:
            raise StoreError(
                f"{folder.path}: there is no unfinished run to go on with. Leave out --resume to "
                "start one."
            )
        return False
    epochs = folder.epochs
    # tuples come back from a file as lists
    differing = [n for n in sorted(found.keys() | asked.keys()) if found.get(n) != asked.get(n)]
    if differing and (resume or epochs):
        run = f"{folder.path}: an unfinished run of this task, with {_epochs(epochs)} done, "
        name = differing[0]
        if name in MEASURED:
            raise StoreError(
                f"{run}cannot go on: {MEASURED[name]} have changed since. Put them back, or give "
                "--restart to discard it."
            )
        raise StoreError(
            f"{run}has {name} {found.get(name)}, this one asks for {asked.get(name)}. "
            "Give the same options to go on with it, or --restart to discard it."
        )
    return not differing


def _kept(folder: RunFolder) -> str:
    """What a run has kept, in words; nothing if that is no epoch."""
    try:
        return _epochs(folder.epochs) if folder.epochs else ""
    except ArtifactError:
        return "its checkpoint cannot be read"


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


class ScoreMemory:
    """A fitness that remembers on disk, so that a search started again passes over its past.

    Args:
        fitness: Scores a subnet.
        folder: Of the run.
        write_every: New scores between two writes.
    """

    def __init__(self, fitness: Fitness[Any], folder: RunFolder, write_every: int) -> None:
        kept = folder.read("scores") or {"seconds": 0.0, "scores": {}}
        self._fitness = fitness
        self._folder = folder
        self._write_every = write_every
        self._scores: dict[str, float] = kept["scores"]
        self._given_up: set[str] = set(kept.get("given_up", []))
        self._seconds_before: float = kept["seconds"]
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent on the search, before an interruption and since."""
        return self._seconds_before + time.perf_counter() - self._started

    def __call__(self, subnet: Any, worthwhile: Worthwhile) -> Score:
        """The subnet's score, known or new."""
        key = hashlib.sha256(str(subnet).encode()).hexdigest()
        if key not in self._scores:
            score = self._fitness(subnet, worthwhile)
            self._scores[key] = score.fitness
            if not score.whole:
                self._given_up.add(key)
            if len(self._scores) % self._write_every == 0:
                self.write()
        return Score(self._scores[key], key not in self._given_up)

    def write(self) -> None:
        """Keep every score known now; what follows the search may change the weights."""
        kept = {"scores": self._scores, "given_up": sorted(self._given_up)}
        self._folder.write("scores", {"seconds": self.seconds, **kept})
