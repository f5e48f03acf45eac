from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from command_stores import make_whole_store, run


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("arguments", [["use", "pets", "v1"], ["remove", "pets", "v1"]])
def test_a_store_that_cannot_be_written_to_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, arguments: list[str]
) -> None:
    make_whole_store(tmp_path, "pets", "pets")

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    result = run(*arguments, "--store", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path}: the store must be writable, this user may not write to it; it is as "
        "it was. Change who may, or give a copy of it with --store.\n"
    )


@pytest.mark.parametrize("command", ["list", "du", "verify", "prune"])
def test_a_missing_store_is_one_line(tmp_path: Path, command: str) -> None:
    result = run(command, "--store", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "the store must be a folder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_variable_names_the_store_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_whole_store(tmp_path / "ours", "pets", "pets")
    make_whole_store(tmp_path / "theirs", "cats")
    monkeypatch.setenv("GLORA_STORE", str(tmp_path / "ours"))
    assert "pets/v2*" in run("list").output
    assert "cats/v1*" in run("list", "--store", tmp_path / "theirs").output
    assert "GLORA_STORE" in run("list", "--help").output


def test_a_command_to_run_names_the_store_unless_it_is_the_one_that_is_meant_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_whole_store(tmp_path / "a", "pets", "pets")
    assert run("pack", "pets/v1", tmp_path / "v1.tar", "--store", tmp_path / "a").exit_code == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLORA_STORE", "ours")
    told = run("unpack", "v1.tar", "-q").stdout
    assert told.endswith("Make one so: glora use pets v1\n")
    assert run("use", "pets", "v1").exit_code == 0
    told = run("unpack", "v1.tar", "-q", "--store", "artifacts").stdout
    assert told.endswith("Make one so: glora use pets v1 --store artifacts\n")
