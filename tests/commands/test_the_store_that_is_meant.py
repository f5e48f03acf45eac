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
