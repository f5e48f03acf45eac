from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from command_stores import make_whole_store, run
from glora_deploy.packs import unpack as unpacking
from glora_deploy.packs.unpack import Unpacked, unpack
from glora_deploy.store.store import ArtifactStore


def test_a_task_travels_in_one_file(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "cats", "pets")
    file = tmp_path / "pets.tar"
    packed = run("pack", "pets", "cats/v1", file, "--store", tmp_path / "a", "-q")
    assert packed.exit_code == 0, packed.output
    size = f"{file.stat().st_size / 1e6:.2f}"
    assert packed.stdout == f"cats: v1*\npets: v1*\n{file}: {size} MB with 1 backbone\n"
    unpacked = run("unpack", file, "--store", tmp_path / "b", "-q")
    assert unpacked.exit_code == 0, unpacked.output
    assert unpacked.stdout == "cats/v1\npets/v1\ncats: v1 is current\npets: v1 is current\n"
    assert run("verify", "--store", tmp_path / "b").exit_code == 0
    again = run("unpack", file, "--store", tmp_path / "b", "-q")
    assert "pets/v1 was there already\n" in again.stdout
    taken = run("pack", "pets", file, "--store", tmp_path / "a")
    assert (taken.exit_code, len(taken.stderr.splitlines())) == (1, 1)
    assert run("pack", "pets", file, "--store", tmp_path / "a", "--force").exit_code == 0
    assert "packing" in run("pack", "pets", tmp_path / "p", "--store", tmp_path / "a").stderr
    renamed = run("unpack", file, "--store", tmp_path / "b", "--as", "dogs", "-q")
    assert renamed.stdout == "dogs/v1\ndogs: v1 is current\n"


def test_a_packed_version_that_was_not_current_comes_with_the_command_that_makes_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_whole_store(tmp_path / "a", "pets", "pets")
    file = tmp_path / "v1.tar"
    assert run("pack", "pets/v1", file, "--store", tmp_path / "a", "-q").exit_code == 0
    told = run("unpack", file, "--store", tmp_path / "b c", "-q").stdout.splitlines()
    command = f"glora use pets v1 --store '{tmp_path}/b c'"
    assert told == ["pets/v1", f"pets: none is current. Make one so: {command}"]
    assert run(*shlex.split(command)[1:]).exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert run("unpack", file, "-q").stdout.endswith("Make one so: glora use pets v1\n")


def test_an_unpacked_task_need_not_answer(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "cats", "pets")
    file = tmp_path / "both.tar"
    assert run("pack", "cats", "pets", file, "--store", tmp_path / "a", "-q").exit_code == 0
    result = run("unpack", file, "--store", tmp_path / "b", "-q", "--no-current")
    assert result.exit_code == 0, result.output
    store = ArtifactStore.open(tmp_path / "b")
    assert [store.current(task) for task in ("cats", "pets")] == [None, None]
    assert "pets: none is current. Make one so: glora use pets v1" in result.stdout


def test_a_task_removed_right_after_it_was_unpacked_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_whole_store(tmp_path / "a", "cats", "pets")
    file = tmp_path / "both.tar"
    assert run("pack", "cats", "pets", file, "--store", tmp_path / "a", "-q").exit_code == 0

    def meanwhile(store: ArtifactStore, *args: Any, **options: Any) -> list[Unpacked]:
        found = unpack(store, *args, **options)
        store.remove("cats", force=True)
        return found

    monkeypatch.setattr(unpacking, "unpack", meanwhile)
    result = run("unpack", file, "--store", tmp_path / "b", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[2:] == [
        "cats: was removed meanwhile",
        "pets: v1 is current",
    ]


def test_what_is_no_pack_or_altered_is_to_be_got_again(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "pets")
    file = tmp_path / "pets.tar"
    assert run("pack", "pets", file, "--store", tmp_path / "a", "-q").exit_code == 0
    data = bytearray(file.read_bytes())
    data[data.index(b"format_version")] ^= 1
    for content in (bytes(data), b"x" * 2000, b""):
        file.write_bytes(content)
        result = run("unpack", file, "--store", tmp_path / "b", "-q")
        assert result.exit_code == 1
        assert result.stderr.endswith(" Get the file again.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack"],
        ["pack", "pets"],
        ["pack", "../pets", "x.tar"],
        ["pack", "pets/../v1", "x.tar"],
        ["pack", "pets/", "x.tar"],
        ["pack", "pets", "STORE/x.tar"],
        ["pack", "pets", "STORE"],
        ["unpack"],
        ["unpack", "x.tar", "--as", "a/b"],
    ],
)
def test_packing_what_cannot_be_meant_is_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    make_whole_store(tmp_path / "store", "pets")
    words = [word.replace("STORE", str(tmp_path / "store")) for word in arguments]
    result = run(*words, "--store", tmp_path / "store")
    assert result.exit_code == 2, result.output
    assert not Path("x.tar").exists()


@pytest.mark.parametrize(
    "arguments", [["pack", "dogs", "x"], ["pack", "pets/v9", "x"], ["unpack", "none.tar"]]
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_whole_store(tmp_path / "store", "pets")
    result = run(*arguments, "--store", tmp_path / "store", "-q")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_place_that_cannot_be_written_is_wrong_usage_and_names_no_other(tmp_path: Path) -> None:
    make_whole_store(tmp_path / "a", "pets")
    for place in ("-", tmp_path / "none" / "pets.tar"):
        packed = run("pack", "pets", place, "--store", tmp_path / "a")
        assert packed.exit_code == 2
        assert ".part" not in packed.output
