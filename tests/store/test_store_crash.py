"""What is left when a writer dies, when the disk is full, and when two writers meet."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crash_driver import (
    ACTIONS,
    BACKBONE,
    N_KILLS,
    N_ROUNDS,
    RACERS,
    TASK,
    export,
    make_template,
    put,
)
from factories import make_tensors
from glora_deploy.errors import StoreError
from glora_deploy.store import atomic_files
from glora_deploy.store.artifact import ADAPTER, MANIFEST
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore

State = dict[str, Any]


def state(root: Path) -> State:
    """Everything a store says and holds, apart from .tmp; every file must verify."""
    store = ArtifactStore.open(root)
    assert store.verify() == []
    found: State = {}
    for task in store.tasks():
        found[f"{task}: current"] = store.current(task)
        for version in store.versions(task):
            artifact = store.get(task, version)
            seed = artifact.manifest.training.seed
            expected = make_tensors(seed=seed or 0)
            assert all(np.array_equal(t, expected[n]) for n, t in artifact.tensors().items())
            place = store.export_dir(artifact, "fp32")
            text = (place / "a").read_text() if place.is_dir() else None
            found[f"{task}/{version}"] = (seed, text)
    backbones = root / ".backbones"
    found["backbones"] = (
        sorted(path.name for path in backbones.iterdir()) if backbones.is_dir() else []
    )
    return found


def drive(mode: str, folder: Path) -> Path:
    """Run the driver; it leaves stores below the folder."""
    driver = Path(__file__).parent.parent / "crash_driver.py"
    environment = {**os.environ, "PYTHONPATH": str(driver.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(driver), mode, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template, and for each action a store for each call at which it died."""
    return drive("cut", tmp_path_factory.mktemp("cut"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def half_way(action: str, before: State, after: State) -> list[State]:
    """States between the two renames of an action, none of which is a mixture of one artifact."""
    match action:
        case "put":
            return [{**after, f"{TASK}: current": before[f"{TASK}: current"]}]
        case "put a new task":
            return [{**after, "dogs: current": None}]
        case "remove the current version":
            return [{**before, f"{TASK}: current": None}]
        case "replace an export without exchange":
            return [{**before, f"{TASK}/v2": (2, None)}]
    return []


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_that_dies_at_any_call_leaves_the_old_state_or_the_new(
    cut_short: Path, action: str
) -> None:
    roots = sorted((cut_short / action).iterdir())
    before, after = state(cut_short / "template"), state(roots[-1])
    assert before != after
    allowed = [before, after, *half_way(action, before, after)]
    found = [state(root) for root in roots]
    for root, one in zip(roots, found, strict=True):
        assert one in allowed, root
    assert before in found[:-1], "the action was never cut short before it took effect"
    assert after in found[:-1], "the action was never cut short after it took effect"
    for root in roots:
        store = ArtifactStore.open(root)
        put(store, seed=50)
        assert list((root / ".tmp").iterdir()) == []
        assert store.get(TASK).manifest.training.seed == 50


@pytest.mark.usefixtures("no_waiting")
def test_processes_killed_at_random_moments_never_damage_a_store(tmp_path: Path) -> None:
    drive("kill", tmp_path)
    states = [state(tmp_path / f"{n:03}") for n in range(N_KILLS)]
    for one in states:
        assert f"{TASK}/{one[f'{TASK}: current']}" in one
    assert len({repr(one) for one in states}) > 5, (
        "the workers were killed before they did anything"
    )


@pytest.mark.usefixtures("no_waiting")
def test_three_processes_that_write_at_once_all_succeed(tmp_path: Path) -> None:
    root = drive("race", tmp_path) / "store"
    found = state(root)
    seeds = sorted(value[0] for key, value in found.items() if key.startswith(f"{TASK}/"))
    written = [first + n for first in RACERS for n in range(N_ROUNDS)]
    assert seeds == sorted([1, 2, *written])
    versions = ArtifactStore.open(root).versions(TASK)
    assert sorted(versions) == sorted(f"v{n}" for n in range(1, len(seeds) + 1))
    assert list((root / ".tmp").iterdir()) == []


# A full disk


@contextmanager
def files_no_longer_than(n_bytes: int) -> Iterator[None]:
    """Let the system refuse any byte of a file beyond these, as it refuses them on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def is_refused_for_space(action: Callable[[], Any], root: Path) -> bool:
    """Whether the action fails; if so, it must say why and leave every byte as it was."""
    before = everything(root)
    try:
        action()
    except StoreError as error:
        message = str(error)
    else:
        return False
    assert message.startswith(f"{root}: no space left to write ")
    assert message.endswith("the store is as it was. Free some space and try again.")
    assert "\n" not in message
    assert everything(root) == before
    return True


CALLS = ("mkdir", "rename", "replace")
WRITERS = ("put", "put a new task", "set current", "roll back", "export", "put a backbone")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("action", WRITERS)
def test_a_real_refusal_of_the_system_to_write_on_leaves_the_store_as_it_was(
    tmp_path: Path, action: str
) -> None:
    make_template(tmp_path)
    store = ArtifactStore.open(tmp_path)
    artifact = tmp_path / TASK / "v2"
    sizes = [(artifact / name).stat().st_size for name in (ADAPTER, MANIFEST)]
    limits = {0, 1, *(size - 1 for size in sizes)} if "put" in action else {0, 1}
    if action == "put a backbone":
        limits = {0, 1, 100}
    for limit in limits:

        def act(limit: int = limit) -> None:
            with files_no_longer_than(limit):
                ACTIONS[action](store)

        assert is_refused_for_space(act, tmp_path)
    with files_no_longer_than(2**16):
        ACTIONS[action](store)
    assert store.verify() == []


NAMES = [
    *((action, call) for action in ("put", "put a new task") for call in CALLS),
    *(("set current", call) for call in ("mkdir", "replace")),
    *(("export", call) for call in ("mkdir", "rename")),
]
"""Each action with the calls by which it makes names."""


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("action", "call"), NAMES)
def test_no_space_for_a_name_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, call: str
) -> None:
    make_template(tmp_path / "template")
    real = getattr(os, call)
    for n_allowed in itertools.count():
        root = tmp_path / str(n_allowed)
        shutil.copytree(tmp_path / "template", root)
        left = [None] * n_allowed

        def fail(path: Any, *arguments: Any, left: list[None] = left) -> Any:
            if call != "mkdir" or not Path(path).exists():  # what is there takes no space
                if not left:
                    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
                left.pop()
            return real(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            if is_refused_for_space(partial(ACTIONS[action], ArtifactStore.open(root)), root):
                continue
        assert left == []
        assert n_allowed > 0
        assert ArtifactStore.open(root).verify() == []
        return


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_template(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    before = everything(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        put(ArtifactStore.open(tmp_path))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("action", ["put", "put a new task", "set current", "export"])
def test_a_disk_that_fails_to_flush_leaves_a_state_that_a_crash_could_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    make_template(tmp_path / "template")
    shutil.copytree(tmp_path / "template", tmp_path / "done")
    ACTIONS[action](ArtifactStore.open(tmp_path / "done"))
    before, after = state(tmp_path / "template"), state(tmp_path / "done")
    allowed = [before, after, *half_way(action, before, after)]
    for n_flushed in itertools.count():
        root = tmp_path / str(n_flushed)
        shutil.copytree(tmp_path / "template", root)
        left = [None] * n_flushed

        def fail(_: int, left: list[None] = left) -> None:
            if not left:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            left.pop()

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            try:
                ACTIONS[action](ArtifactStore.open(root))
            except OSError:
                failed = True
            else:
                failed = False
        assert state(root) in allowed
        if not failed:
            break
    assert n_flushed >= 2


# A power cut: nothing is renamed before it is on the disk


class Disk:
    """Watches calls, and knows what a power cut would lose."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.safe: dict[int, int] = {}
        self.unsafe_folders: set[int] = set()
        self.n_moves = 0
        fsync, rename, replace, exchange = os.fsync, os.rename, os.replace, atomic_files._exchange

        def watched_fsync(handle: int) -> None:
            status = os.fstat(handle)
            self.safe[status.st_ino] = status.st_mtime_ns
            self.unsafe_folders.discard(status.st_ino)
            fsync(handle)

        def watched(move: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            def watched_move(source: Any, target: Any) -> Any:
                self.check(Path(source), Path(target))
                return move(source, target)

            return watched_move

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "rename", watched(rename))
        monkeypatch.setattr(os, "replace", watched(replace))
        monkeypatch.setattr(atomic_files, "_exchange", watched(exchange))

    def check(self, source: Path, target: Path) -> None:
        self.n_moves += 1
        if (self.root / ".tmp") not in target.parents:
            for path in (source, *source.rglob("*")):
                status = path.stat()
                assert self.safe.get(status.st_ino) == status.st_mtime_ns, path
        for folder in (source.parent, target.parent):
            if (self.root / ".tmp") not in folder.parents:
                self.unsafe_folders.add(folder.stat().st_ino)


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_renamed_before_it_is_flushed_and_every_rename_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    make_template(tmp_path)
    store = ArtifactStore.open(tmp_path)
    monkeypatch.setattr(
        atomic_files, "_exchange", atomic_files._exchange
    )  # restored after the test
    disk = Disk(monkeypatch, tmp_path)
    ACTIONS[action](store)
    assert disk.n_moves >= 1
    assert disk.unsafe_folders == set()


def test_a_new_task_a_new_export_folder_and_a_first_backbone_are_flushed_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_template(tmp_path)
    store = ArtifactStore.open(tmp_path)
    flushed: list[int] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    for action, parent in (
        (lambda: put(store, task="dogs"), tmp_path),
        (lambda: export(store, version="v1"), tmp_path / TASK / "v1"),
        (lambda: store.put_backbone(fingerprint(BACKBONE), BACKBONE, {}), tmp_path),
    ):
        flushed.clear()
        action()
        assert parent.stat().st_ino in flushed
