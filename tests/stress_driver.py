"""Many processes on one store at once, every action at random, and what must hold all the while.

    python stress_driver.py FOLDER --processes 16 --seconds 60

Every process puts, removes, makes current, rolls back, lists, gets, verifies, exports and prunes.
Each action succeeds or names a conflict of ``CONFLICTS``; ``problems`` holds the store and what the
processes say they did against each other. It ends with status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from factories import make_draft, make_store, make_tensors
from glora_deploy.errors import GloraDeployError
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.prune import prune
from glora_deploy.store.store import ArtifactStore

TASKS = ("pets", "cats")
"""Their versions come and go one by one."""
FLEETING = "birds"
"""Is removed as a whole, again and again."""
KEPT = ("keep1", "keep2")
"""Versions of every task of ``TASKS`` that nobody removes: they are in every listing."""
BACKBONES = {
    task: {"w": np.full((3, 4), value, np.float32)} for value, task in enumerate((*TASKS, FLEETING))
}
"""Each task has its own; that of the fleeting one is pruned whenever the task is gone."""
MAX_VERSIONS = 8
"""A task with more is thinned out, so that listing stays cheap."""

CONFLICTS: dict[str, tuple[str, ...]] = {
    "use": (r"no version '\S+' of task '\S+' in ", r"no task 'birds' in "),
    "get": (r"no version '\S+' of task '\S+' in ", r"no task 'birds' in "),
    "remove": (
        r"no version '\S+' of task '\S+' in ",
        r"no task 'birds' in ",
        r"\S+: is the current version\. Make another one current first",
    ),
    "rollback": (
        r"\S+: \S+ is the oldest version, there is none to roll back to",
        r"\S+/current: is missing, so no version is current; ",
        r"no task 'birds' in ",
    ),
    "export": (r"\S+: \S+/\S+ is not in the store$", *(r"no version '\S+' of task '\S+' in ",)),
    "versions": (r"no task 'birds' in ",),
}
"""The whole list of what an action may end with other than success: real conflicts."""


def put(store: ArtifactStore, task: str, seed: int, version: str | None, current: bool) -> str:
    """A version whose manifest names the seed of its tensors, with its backbone."""
    backbone = BACKBONES[task]
    store.put_backbone(fingerprint(backbone), backbone, {"a": 1})
    if task == FLEETING:
        time.sleep(0.005)  # long enough for a prune to come between
    draft = make_draft()
    draft = draft.model_copy(
        update={
            "training": draft.training.model_copy(update={"seed": seed}),
            "backbone": draft.backbone.model_copy(update={"fingerprint": fingerprint(backbone)}),
        }
    )
    tensors = make_tensors(draft, seed=seed)
    return store.put(task, tensors, draft, version=version, make_current=current).version


@dataclass
class Worker:
    """One process: what it does, and what it writes down about it, a line of JSON each."""

    root: Path
    number: int
    log: Path
    rng: random.Random = field(init=False)
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.number)
        self.seeds = itertools.count(1_000_000 * (self.number + 1))

    def run(self, goes_on: Callable[[int], bool]) -> None:
        actions = (
            *(self.put,) * 4,
            *(self.remove,) * 3,
            *(self.use,) * 3,
            *(self.rollback,) * 2,
            *(self.listing,) * 3,
            *(self.get,) * 3,
            *(self.export,) * 3,
            self.verify,
            *(self.remove_task,) * 2,
            *(self.prune,) * 2,
        )
        for n in itertools.count():
            if not goes_on(n):
                break
            # As every command of the user does.
            store = ArtifactStore.open(self.root)
            act = self.rng.choice(actions)
            try:
                act(store)
            except (GloraDeployError, OSError, ValueError) as error:
                name = "remove" if act == self.remove_task else act.__name__
                said = f"{type(error).__name__}: {error}"
                self.note(name, error=str(error), said=said)
        self.log.write_text("".join(f"{json.dumps(line)}\n" for line in self.done))

    def note(self, action: str, **facts: Any) -> None:
        self.done.append({"action": action, **facts})

    def any_task(self) -> str:
        return self.rng.choice((*TASKS, FLEETING))

    def versions(self, store: ArtifactStore, task: str) -> list[str]:
        try:
            return store.versions(task)
        except GloraDeployError:
            return []

    def any_version(self, store: ArtifactStore, task: str) -> str:
        return self.rng.choice(self.versions(store, task) or ["v1"])

    def put(self, store: ArtifactStore) -> None:
        task, seed = self.any_task(), next(self.seeds)
        named = f"n{seed}" if self.rng.random() < 0.3 else None
        version = put(store, task, seed, named, self.rng.random() < 0.6)
        self.note("put", task=task, version=version, seed=seed)
        for surplus in self.versions(store, task)[MAX_VERSIONS:]:
            self.remove(store, task, surplus)

    def remove(
        self, store: ArtifactStore, task: str | None = None, version: str | None = None
    ) -> None:
        task = task or self.any_task()
        version = version or self.any_version(store, task)
        if version in KEPT:
            return
        try:
            store.remove(task, version, force=self.rng.random() < 0.5)
        except GloraDeployError as error:
            self.note("remove", error=str(error), said=f"{type(error).__name__}: {error}")
            return
        self.note("remove", task=task, version=version)

    def remove_task(self, store: ArtifactStore) -> None:
        store.remove(FLEETING)
        self.note("remove", task=FLEETING, version=None)

    def use(self, store: ArtifactStore) -> None:
        task = self.any_task()
        store.set_current(task, self.any_version(store, task))
        self.note("use")

    def rollback(self, store: ArtifactStore) -> None:
        store.rollback(self.any_task())
        self.note("rollback")

    def listing(self, store: ArtifactStore) -> None:
        tasks = store.tasks()
        missing = [task for task in TASKS if task not in tasks]
        for task in TASKS:
            versions = store.versions(task)
            missing += [f"{task}/{name}" for name in KEPT if name not in versions]
        store.sizes()
        self.note("listing", missing=missing)

    def get(self, store: ArtifactStore) -> None:
        task = self.any_task()
        artifact = store.get(task, self.any_version(store, task))
        self.note("get", task=artifact.task)

    def export(self, store: ArtifactStore) -> None:
        task = self.rng.choice(TASKS)
        artifact = store.get(task, self.any_version(store, task))
        with store.replace_export(artifact, "fp32") as folder:
            seed = str(artifact.manifest.training.seed)
            (folder / "seed").write_text(seed)
            record = ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=False)
            record.write(folder)
        self.note("export")

    def verify(self, store: ArtifactStore) -> None:
        found = store.verify() + store.without_backbone()
        self.note("verify", alarms=[finding.problem for finding in found])

    def prune(self, store: ArtifactStore) -> None:
        names = [unused.path.name for unused in prune(store) if not unused.in_use]
        self.note("prune")
        if names:
            self.note("prune a backbone", names=names)


def stress(root: Path, n_processes: int, goes_on: Callable[[int], bool]) -> list[dict[str, Any]]:
    """Let processes loose on a new store; everything that they did."""
    store = make_store(root / "store")
    for task in TASKS:
        for seed, version in enumerate(KEPT):
            put(store, task, seed, version, current=True)
    children = []
    for number in range(n_processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                Worker(root / "store", number, root / f"{number}.jsonl").run(goes_on)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"processes ended with {codes}")
    return [
        json.loads(line)
        for number in range(n_processes)
        for line in (root / f"{number}.jsonl").read_text().splitlines()
    ]


def problems(root: Path, done: list[dict[str, Any]]) -> Iterator[str]:
    """Everything that is not as it must be, in what was done and in the store that is left."""
    for line in done:
        known = CONFLICTS.get(line["action"], ())
        if "error" in line and not any(re.match(pattern, line["error"]) for pattern in known):
            yield f"{line['action']}: {line['said']}"
        yield from (f"verify: {alarm}" for alarm in line.get("alarms", ()))
        yield from (f"listing: {name} is missing" for name in line.get("missing", ()))
    store = ArtifactStore.open(root / "store")
    found = store.verify() + store.without_backbone()
    yield from (f"at the end: {finding.problem}" for finding in found)
    yield from (f"at the end: {left} is left" for left in (root / "store/.tmp").iterdir())
    yield from _lost(store, done)
    for task in store.tasks():
        current = store.current(task)
        if current is not None and current not in store.versions(task):
            yield f"{task}: current names {current}, which is not there"


def _lost(store: ArtifactStore, done: list[dict[str, Any]]) -> Iterator[str]:
    """Every version of a name that was put once more than removed is there, with its bytes."""
    balance: Counter[tuple[str, str]] = Counter((task, name) for task in TASKS for name in KEPT)
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for line in done:
        if line.get("task") not in TASKS or line["action"] not in ("put", "remove"):
            continue
        key = (line["task"], line["version"])
        balance[key] += 1 if line["action"] == "put" else -1
        if line["action"] == "put":
            seeds[key].add(line["seed"])
    for task in TASKS:
        there = set(store.versions(task))
        for (_, version), count in balance.items():
            if _ == task and count != (version in there):
                yield f"{task}/{version}: put {count} times more than removed, and " + (
                    "there" if version in there else "lost"
                )
        for version in there:
            artifact = store.get(task, version)
            seed = artifact.manifest.training.seed or 0
            if version not in KEPT and seed not in seeds[task, version]:
                yield f"{task}/{version}: holds seed {seed}, which nobody put there"
            expected = make_tensors(seed=seed)
            if any(not np.array_equal(t, expected[n]) for n, t in artifact.tensors().items()):
                yield f"{task}/{version}: other tensors than were put"
            export = store.export_dir(artifact, "fp32") / "seed"
            if export.exists() and export.read_text() != str(seed):
                yield f"{task}/{version}: has the export of seed {export.read_text()}"


def counts(done: list[dict[str, Any]]) -> str:
    """How often each action succeeded and met a conflict."""
    well = Counter(line["action"] for line in done if "error" not in line)
    conflicts = Counter(line["action"] for line in done if "error" in line)
    return "\n".join(
        f"{action:16} {well[action]:7} done {conflicts[action]:7} conflicts"
        for action in sorted(well | conflicts)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seconds", type=float, help="how long")
    parser.add_argument("--operations", type=int, default=60, help="of each, without --seconds")
    parser.add_argument("--no-flush", action="store_true", help="do not wait for the disk")
    asked = parser.parse_args()
    if asked.no_flush:
        os.fsync = lambda handle: None  # type: ignore[assignment]
    end = time.monotonic() + asked.seconds if asked.seconds else None

    def goes_on(n: int) -> bool:
        return time.monotonic() < end if end is not None else n < asked.operations

    asked.folder.mkdir(parents=True, exist_ok=True)
    done = stress(asked.folder, asked.processes, goes_on)
    found = Counter(problems(asked.folder, done))
    kinds = Counter(
        re.sub(r"\b(v|n)\d+\b|\b\d+\b|'\S+'|/\S+", "..", text) for text in found.elements()
    )
    print(counts(done))
    for kind, number in kinds.most_common(30):
        print(f"{number:5} {kind[:200]}")
    print(f"problems: {found.total()}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
