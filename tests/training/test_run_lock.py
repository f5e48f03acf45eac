from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glora_deploy.errors import StoreError
from glora_deploy.training.run_lock import LOCK, hold, require_not_held

HOLDING = """
import sys
from pathlib import Path
from glora_deploy.training.run_lock import hold
with hold(Path(sys.argv[1]), version="v7"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store/.runs/pets"


def start_holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_in_one_line_that_names_the_holder(folder: Path) -> None:
    with start_holder(folder) as process:
        for begin in (lambda: require_not_held(folder), hold(folder, version=None).__enter__):
            with pytest.raises(StoreError) as caught:
                begin()
            said = str(caught.value)
            assert "\n" not in said
            assert said.startswith(f"{folder}: another training of task pets is under way")
            assert f"process {process.pid} on {os.uname().nodename}, since 20" in said
            assert "to store v7. Wait for it, or give another --task or --store." in said
        process.kill()
    with hold(folder, version=None):  # the kernel let go of it
        pass


def test_a_holder_that_ends_leaves_no_folder_and_one_with_files_stays(folder: Path) -> None:
    with hold(folder, version=None):
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not folder.exists()
    with hold(folder, version=None):
        (folder / "run.json").write_text("{}")
    require_not_held(folder)
    assert {path.name for path in folder.iterdir()} == {LOCK, "run.json"}


def test_a_look_at_a_folder_that_nobody_has_makes_none(folder: Path) -> None:
    require_not_held(folder)
    assert not folder.exists()


def test_one_process_holds_it_once(folder: Path) -> None:
    with (
        hold(folder, version=None),
        pytest.raises(StoreError, match=f"process {os.getpid()} on .* to store its next version"),
        hold(folder, version=None),
    ):
        pass


def test_a_folder_that_was_moved_away_meanwhile_is_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, moved = fcntl.flock, folder.with_name("moved")

    def move_first(handle: int, kind: int) -> None:
        if not moved.exists():  # as its last holder does at its end
            folder.rename(moved)
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", move_first)
    with hold(folder, version=None):
        assert (folder / LOCK).read_bytes() != b""
        assert (moved / LOCK).read_bytes() == b""


def test_the_end_of_one_holder_does_not_touch_the_folder_of_the_next(folder: Path) -> None:
    with hold(folder, version=None):
        folder.rename(folder.with_name("stored"))
        second = hold(folder, version=None)
        second.__enter__()
    assert (folder / LOCK).exists()
    with pytest.raises(StoreError, match="another training"):
        require_not_held(folder)
    second.__exit__(None, None, None)


def test_a_file_system_without_locks_is_said_and_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(handle: int, kind: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    told: list[str] = []
    with hold(folder, version=None, tell=told.append):
        pass
    (line,) = told
    assert line.startswith(f"{folder}: this file system knows no locks. Take care that no other")


def test_a_look_that_is_over_in_a_moment_does_not_stop_a_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def busy_once(handle: int, kind: int) -> None:
        calls.append(kind)
        if len(calls) == 1:
            raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", busy_once)
    with hold(folder, version=None):
        assert len(calls) == 2
