"""Runs store actions in forked children that die half way; test_store_crash.py starts it.

A fresh single-threaded process is a safe place to fork from, unlike a test runner::

    python crash_driver.py cut FOLDER     each action, dying at the k-th system call, for every k
    python crash_driver.py kill FOLDER    SIGKILL at random moments, one store throughout
    python crash_driver.py race FOLDER    three processes write to one store at once

Each leaves what it has to show as stores below FOLDER.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factories import make_draft, make_store, make_tensors
from glora_deploy.store import atomic_files
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore

TASK = "pets"
BACKBONE = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}
RACERS = (100, 200, 300)
"""The first seed of each process of a race."""
N_ROUNDS = 8
N_KILLS = 20
KILLED = 99
CHANGING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def put(store: ArtifactStore, seed: int = 9, task: str = TASK) -> None:
    """Store the tensors of a seed that the manifest names."""
    draft = make_draft()
    draft = draft.model_copy(update={"training": draft.training.model_copy(update={"seed": seed})})
    store.put(task, make_tensors(draft, seed=seed), draft)


def export(store: ArtifactStore, text: str = "new", version: str | None = None) -> None:
    """Replace the export of a version: two files and the record of them."""
    artifact = store.get(TASK, version)
    with store.replace_export(artifact, "fp32") as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).write_text(text)
        ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=False).write(folder)


def export_without_exchange(store: ArtifactStore) -> None:
    """As on a system that cannot exchange two names."""
    atomic_files._exchange = lambda a, b: False
    export(store)


ACTIONS: dict[str, Callable[[ArtifactStore], Any]] = {
    "put": put,
    "put a new task": lambda store: put(store, task="dogs"),
    "set current": lambda store: store.set_current(TASK, "v1"),
    "roll back": lambda store: store.rollback(TASK),
    "remove a version": lambda store: store.remove(TASK, "v1"),
    "remove the current version": lambda store: store.remove(TASK, "v2", force=True),
    "remove a task": lambda store: store.remove(TASK),
    "export": lambda store: export(store, version="v1"),
    "replace an export": export,
    "replace an export without exchange": export_without_exchange,
    "put a backbone": lambda store: store.put_backbone(fingerprint(BACKBONE), BACKBONE, {"a": 1}),
}


def make_template(root: Path) -> None:
    """Two versions of a task, the second current and exported."""
    store = make_store(root)
    for seed in (1, 2):
        put(store, seed)
    export(store, "old")


def in_child(action: Callable[[], Any]) -> int:
    """Fork, act, and report how the child ended."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(n_calls: int) -> None:
    """End this process, unflushed, just before the n-th call that changes or flushes the disk."""
    calls = itertools.count()

    def count(*_: object) -> None:
        if next(calls) == n_calls:
            os._exit(KILLED)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGING:
            count()

    os.fsync = count  # type: ignore[assignment]  # a process that dies loses nothing unflushed
    sys.addaudithook(hook)


def cut(folder: Path) -> None:
    """For each action one store for each call at which it can be cut short, and a finished one."""
    make_template(folder / "template")
    for action in ACTIONS:
        cut_short(action, folder)


def cut_short(action: str, folder: Path) -> None:
    for n_calls in itertools.count():
        root = folder / action / f"{n_calls:03}"
        shutil.copytree(folder / "template", root)

        def act(root: Path = root, n_calls: int = n_calls) -> None:
            store = ArtifactStore.open(root)
            die_at(n_calls)
            ACTIONS[action](store)

        code = in_child(act)
        if code == 0:
            return
        if code != KILLED:
            raise SystemExit(f"{action} ended with {code}")


def work(root: Path, first: int, telling: int) -> None:
    """Put, export, make current and remove, again and again; a byte tells that a round begins."""
    store = ArtifactStore.open(root)
    for seed in itertools.count(first):
        os.write(telling, b".")
        put(store, seed)
        export(store, f"{seed}")
        versions = store.versions(TASK)
        store.set_current(TASK, versions[seed % len(versions)])
        if len(versions) > 6:
            store.remove(TASK, next(v for v in versions if v != store.current(TASK)))


def kill(folder: Path) -> None:
    """Kill workers on one store at random moments; a copy of the store after each."""
    rng = random.Random(0)
    make_template(folder / "store")
    for n in range(N_KILLS):
        told, telling = os.pipe()
        child = os.fork()
        if child == 0:
            work(folder / "store", 1000 * (n + 1), telling)
        os.close(telling)
        # On a busy machine a moment may pass without a step of the worker's: rounds are counted.
        for _ in range(rng.randint(1, 5)):
            if not os.read(told, 1):
                raise SystemExit("a worker ended by itself")
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        shutil.copytree(folder / "store", folder / f"{n:03}")


def race(folder: Path) -> None:
    """Three processes put, export and set current at once, without removing."""
    make_template(folder / "store")

    def act(first: int) -> None:
        store = ArtifactStore.open(folder / "store")
        for seed in range(first, first + N_ROUNDS):
            put(store, seed)
            export(store, f"{seed}", version="v1")
            store.set_current(TASK, "v1" if seed % 2 else "v2")

    children = []
    for first in RACERS:
        child = os.fork()
        if child == 0:
            os._exit(in_child(lambda first=first: act(first)))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"writers ended with {codes}")


if __name__ == "__main__":
    {"cut": cut, "kill": kill, "race": race}[sys.argv[1]](Path(sys.argv[2]))
