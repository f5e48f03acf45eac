"""Two real processes that train one task in one store, and one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import training_driver
from training_driver import EPOCHS, TASK

from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.store import ArtifactStore

DRIVER = Path(training_driver.__file__)


def command(store: Path, waits_at: int) -> list[str]:
    return [sys.executable, str(DRIVER), str(store), str(waits_at)]


@contextmanager
def waiting_training(store: Path, epoch: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has trained so many epochs, and trains on when its stdin gets a line."""
    with subprocess.Popen(
        command(store, epoch), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            while (line := process.stdout.readline()) != f"at {epoch}\n":
                assert line, "it ended before it came to this epoch"
            yield process
        finally:
            process.kill()


def run(store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(store, 0), capture_output=True, text=True, check=False)


def test_a_second_training_fails_at_once_and_does_the_first_no_harm(tmp_path: Path) -> None:
    with waiting_training(tmp_path, 3) as first:
        second = run(tmp_path)
        assert second.returncode != 0
        assert second.stdout == ""  # not an epoch
        *_, said = second.stderr.strip().splitlines()
        assert "another training of task colours is under way in this store" in said
        assert f"process {first.pid} on {os.uname().nodename}, since 20" in said
        assert "to store release. Wait for it, or give another --task or --store." in said
        rest, _ = first.communicate("\n")
        assert rest.splitlines() == [f"at {epoch}" for epoch in range(4, EPOCHS + 1)]
        assert first.returncode == 0
    assert ArtifactStore.open(tmp_path).versions(TASK) == ["release"]


def test_another_store_may_be_trained_into_meanwhile(tmp_path: Path) -> None:
    with waiting_training(tmp_path / "one", 1):
        assert run(tmp_path / "other").returncode == 0


def test_the_same_command_goes_on_where_a_killed_training_was(tmp_path: Path) -> None:
    with waiting_training(tmp_path / "killed", 5) as process:
        process.kill()
        process.wait()
    again = run(tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    told = again.stdout.splitlines()
    assert "going on with an unfinished run: 4 epochs done" in told
    assert [line for line in told if line.startswith("at ")] == ["at 4", "at 5", "at 6"]
    assert run(tmp_path / "whole").returncode == 0
    found, whole = (
        fingerprint(ArtifactStore.open(tmp_path / name).get(TASK).tensors())
        for name in ("killed", "whole")
    )
    assert found == whole
