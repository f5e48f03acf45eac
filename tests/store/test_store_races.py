"""What each action does when another process acts between two of its steps.

Each test lets one thing happen at one place; ``stress_driver.py`` lets everything happen anywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from factories import make_artifact, make_draft, make_tensors
from glora_deploy import console
from glora_deploy.commands.main import app
from glora_deploy.errors import NotInStoreError, StoreError
from glora_deploy.store import audit, reader, store as store_module
from glora_deploy.store.artifact import MANIFEST
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.folder_lock import OpenFolder, folder_lock
from glora_deploy.store.store import ArtifactStore
from pets_store import refusal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def other(store: ArtifactStore) -> ArtifactStore:
    """The same store in another process."""
    return ArtifactStore(store.root)


class Meanwhile:
    """Lets something happen once, just before or after a function is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.happened = False

    def __call__(
        self,
        where: Any,
        name: str,
        act: Callable[[], Any],
        *,
        after: bool = False,
        on: Callable[..., bool] = lambda *_: True,
    ) -> None:
        real = getattr(where, name)

        def watched(*args: Any, **names: Any) -> Any:
            if self.happened or not on(*args):
                return real(*args, **names)
            self.happened = True
            if not after:
                act()
            found = real(*args, **names)
            if after:
                act()
            return found

        self._patch.setattr(where, name, watched)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    return Meanwhile(monkeypatch)


def of(version: str) -> Callable[..., bool]:
    """Whether a call is about a folder of this name."""
    return lambda folder, *_: Path(folder).name == version


def absence(action: Callable[[], Any]) -> str:
    """The one line that says something is not in the store."""
    return refusal(action, NotInStoreError)


# A version that is removed between the listing and the reading


READINGS: dict[str, tuple[Callable[[ArtifactStore], Any], Any]] = {
    "versions": (lambda s: s.versions("pets"), ["v1", "v3"]),
    "put": (lambda s: make_artifact(s).version, "v4"),
    "sizes": (lambda s: sorted(s.sizes()), ["cats", "pets"]),
    "rollback": (lambda s: s.rollback("pets").version, "v1"),
    "verify": (lambda s: s.verify(), []),
    "verify a task": (lambda s: s.verify("pets"), []),
    "without a backbone": (
        lambda s: [f.version for f in s.without_backbone("pets")],
        ["v1", "v3"],
    ),
}


@pytest.mark.parametrize("what", READINGS)
def test_a_version_removed_while_it_is_read_is_not_there(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile, what: str
) -> None:
    act, expected = READINGS[what]
    if what == "sizes":
        meanwhile(audit.os, "walk", lambda: other.remove("cats", force=True))
        del expected[0]
    else:
        meanwhile(reader, "read_artifact", lambda: other.remove("pets", "v2"), on=of("v2"))
    assert act(store) == expected
    assert meanwhile.happened
    assert store.verify() == []


def test_a_version_removed_while_it_is_opened_is_named(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    meanwhile(reader, "read_artifact", lambda: other.remove("pets", "v2"), on=of("v2"))
    assert absence(lambda: store.get("pets", "v2")) == (
        f"no version 'v2' of task 'pets' in {store.root}; versions here: v1, v3"
    )


@pytest.mark.parametrize("step", ["read_artifact", "moving"])
def test_a_version_removed_while_it_is_made_current_is_named(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile, step: str
) -> None:
    where = reader if step == "read_artifact" else store
    meanwhile(where, step, lambda: other.remove("pets", "v2"))
    assert absence(lambda: store.set_current("pets", "v2")) == (
        f"no version 'v2' of task 'pets' in {store.root}; versions here: v1, v3"
    )
    assert meanwhile.happened
    assert store.current("pets") == "v3"


def test_a_task_removed_while_it_is_listed_is_not_there(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    meanwhile(store, "version_names", lambda: other.remove("cats"), on=lambda task: task == "cats")
    assert store.tasks() == ["pets"]
    assert absence(lambda: store.versions("cats")).startswith("no task 'cats' in ")


@pytest.mark.parametrize("act", ["versions", "current", "verify"])
def test_a_task_removed_after_it_was_found_is_named(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile, act: str
) -> None:
    meanwhile(store, "require_task", lambda: other.remove("cats"), after=True)
    assert absence(lambda: getattr(store, act)("cats")) == (
        f"no task 'cats' in {store.root}; tasks here: pets"
    )
    assert store.verify() == []


def test_another_version_of_the_same_name_is_read_in_whole(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    def replace() -> None:
        other.remove("pets", "v2")
        other.put("pets", make_tensors(seed=9), make_draft(), version="v2", make_current=False)

    # After the manifest of the one and before the tensors of the other.
    meanwhile(reader, "read_artifact", replace, after=True, on=of("v2"))
    artifact = store.set_current("pets", "v2")
    assert np.array_equal(artifact.tensors()["head.bias"], make_tensors(seed=9)["head.bias"])
    assert store.current("pets") == "v2"


# Current


def test_the_current_version_is_the_next_one_when_the_first_is_removed_meanwhile(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    def switch() -> None:
        other.set_current("pets", "v1")
        other.remove("pets", "v3")

    meanwhile(store, "version_names", switch, on=lambda task: task == "pets")
    assert store.get("pets").version == "v1"


def test_a_removed_version_is_never_current(store: ArtifactStore, other: ArtifactStore) -> None:
    """Whoever comes between the check of ``current`` and the rename has to wait."""
    met: list[str] = []
    rename = Path.rename

    def use_it(path: Path, target: Path) -> Path:
        if path.name == "v2" and not met:
            thread = threading.Thread(target=lambda: met.append(attempt(other)))
            thread.start()
            thread.join(0.2)
            assert met == []
            waiting.append(thread)
        return rename(path, target)

    def attempt(store: ArtifactStore) -> str:
        return absence(lambda: store.set_current("pets", "v2"))

    waiting: list[threading.Thread] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", use_it)
        store.remove("pets", "v2")
    waiting[0].join()
    assert met == [f"no version 'v2' of task 'pets' in {store.root}; versions here: v1, v3"]
    assert store.current("pets") == "v3"


def test_a_version_that_another_makes_current_meanwhile_is_not_removed(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    meanwhile(store, "moving", lambda: other.set_current("pets", "v2"))
    message = refusal(lambda: store.remove("pets", "v2"), StoreError)
    assert "pets/v2: is the current version." in message
    assert store.current("pets") == "v2"


def test_forcing_out_a_version_that_is_not_current_any_more_keeps_the_new_one_current(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    meanwhile(store, "moving", lambda: other.set_current("pets", "v1"))
    store.remove("pets", "v3", force=True)
    assert store.current("pets") == "v1"


def test_a_version_removed_as_soon_as_it_is_put_leaves_no_current_behind(
    store: ArtifactStore, other: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, threads = store_module.replace_current, []

    def remove_it(new: Path, task_folder: Path) -> None:
        thread = threading.Thread(target=lambda: other.remove("dogs", "v1", force=True))
        threads.append(thread)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # it waits until the version is current
        assert (task_folder / "v1").is_dir()
        real(new, task_folder)

    monkeypatch.setattr(store_module, "replace_current", remove_it)
    assert make_artifact(store, "dogs").version == "v1"
    threads[0].join()
    assert not (store.root / "dogs").exists()
    assert store.verify() == []


def test_a_task_goes_with_its_only_version_whatever_current_says(store: ArtifactStore) -> None:
    (store.root / "cats/current").write_text("v9\n")
    store.remove("cats", "v1")
    assert not (store.root / "cats").exists()
    assert store.verify() == []


def test_two_rollbacks_at_once_go_back_by_two(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    meanwhile(store, "moving", lambda: other.rollback("pets"))
    assert store.rollback("pets").version == "v1"
    assert store.current("pets") == "v1"


# Verify


@pytest.mark.parametrize("task", ["pets", "dogs"])
def test_verify_waits_for_a_version_that_is_half_stored(
    store: ArtifactStore, other: ArtifactStore, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """The folder of a new task is empty for a moment, and the version there before it is listed."""
    real, found, threads = store_module.move_in, [], []

    def verify_meanwhile(new: Path, place: Path) -> bool:
        place.parent.mkdir(exist_ok=True)
        (place.parent / "half").mkdir()  # whatever a step in between looks like
        thread = threading.Thread(target=lambda: found.append(other.verify()))
        threads.append(thread)
        thread.start()
        thread.join(0.2)
        (place.parent / "half").rmdir()
        return real(new, place)

    monkeypatch.setattr(store_module, "move_in", verify_meanwhile)
    make_artifact(store, task)
    threads[0].join()
    assert found == [[]]


def test_verify_checks_the_export_that_took_the_place_of_another(
    store: ArtifactStore, other: ArtifactStore, meanwhile: Meanwhile
) -> None:
    def export(text: str) -> None:
        with other.replace_export(other.get("pets"), "fp32") as folder:
            (folder / text).write_text(text)
            manifest = other.get("pets").manifest
            ExportRecord.of_folder(folder, manifest, "fp32", usable=False).write(folder)

    export("old")
    meanwhile(audit, "_file_names", lambda: export("new"))
    assert store.verify() == []
    assert meanwhile.happened
    (store.export_dir(store.get("pets"), "fp32") / "new").write_text("changed")
    assert "fp32/new: " in store.verify()[0].problem


def test_lost_and_found_of_a_volume_is_no_problem(store: ArtifactStore) -> None:
    (store.root / "lost+found").mkdir(mode=0o700)
    assert store.verify() == []
    assert store.tasks() == ["cats", "pets"]
    (store.root / "pets" / "lost+found").mkdir()
    assert len(store.verify()) == 1  # no volume begins there


# Exports


def test_an_export_never_goes_to_another_version_of_the_same_name(
    store: ArtifactStore, other: ArtifactStore
) -> None:
    artifact = store.get("pets", "v3")
    gone = f"{artifact.path}: pets/v3 is not in the store"

    def replace() -> None:
        other.remove("pets", "v3", force=True)
        assert make_artifact(other, seed=9).version == "v3"

    def export(act: Callable[[], Any] = lambda: None) -> None:
        with store.replace_export(artifact, "fp32") as folder:
            (folder / "a").write_text("of the old one")
            act()

    assert absence(lambda: export(replace)) == gone
    assert absence(export) == gone
    assert not (store.root / "pets/v3/exports").exists()


def test_whatever_an_exporter_meets_because_its_version_is_gone_is_said_as_that(
    store: ArtifactStore, other: ArtifactStore
) -> None:
    artifact = store.get("pets", "v2")

    def export() -> None:
        with store.replace_export(artifact, "fp32"):
            other.remove("pets", "v2")
            artifact.tensors()

    assert absence(export) == f"{artifact.path}: pets/v2 is not in the store"


# Locks and open folders


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from glora_deploy.store.folder_lock import OpenFolder\n"
        "folder = OpenFolder(Path(sys.argv[1])); folder.lock(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process,
        OpenFolder(tmp_path) as folder,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not folder.lock(wait=False)
        assert not folder.lock(shared=True, wait=False)
        process.kill()
        process.wait()
        assert folder.lock()


def test_shared_locks_do_not_keep_each_other_out(tmp_path: Path) -> None:
    with folder_lock(tmp_path, shared=True), OpenFolder(tmp_path) as second:
        assert second.lock(shared=True, wait=False)
        assert not second.lock(wait=False)


def test_a_folder_is_told_from_one_that_took_its_name(tmp_path: Path) -> None:
    place = tmp_path / "x"
    place.mkdir()
    with OpenFolder(place) as folder:
        assert folder.in_place()
        place.rmdir()
        assert not folder.in_place()
        place.mkdir()
        assert not folder.in_place()


# Listing at the command line


def test_list_and_du_skip_what_is_removed_meanwhile(
    store: ArtifactStore, other: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.stdout, "width", 200)
    for command in ("list", "du"):
        meanwhile = Meanwhile(monkeypatch)
        version = {"list": "v1", "du": "v2"}[command]

        def remove(version: str = version) -> None:
            other.remove("pets", version)

        meanwhile(reader, "read_artifact", remove, on=of(version))
        result = CliRunner().invoke(app, [command, "--store", str(store.root)])
        assert result.exit_code == 0, result.output
        assert meanwhile.happened
        assert f"pets/{version}" not in result.output
    assert not (store.root / "pets/v2" / MANIFEST).exists()


# Everything at once


def test_sixteen_processes_at_once_lose_nothing_and_raise_no_alarm(tmp_path: Path) -> None:
    driver = Path(__file__).parent.parent / "stress_driver.py"
    environment = {**os.environ, "PYTHONPATH": str(driver.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(driver), str(tmp_path), "--operations", "40", "--no-flush"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    acted = {line.split()[0] for line in done.stdout.splitlines() if " 0 done" not in line}
    assert acted >= {
        "put",
        "remove",
        "use",
        "rollback",
        "listing",
        "get",
        "export",
        "verify",
        "prune",
    }
    assert done.stdout.endswith("problems: 0\n")
