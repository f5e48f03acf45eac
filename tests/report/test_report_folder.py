from __future__ import annotations

from pathlib import Path

import pytest

from glora_deploy.errors import StoreError
from glora_deploy.report.report_folder import require_replaceable, write_folder


def write(out: Path, **files: bytes) -> None:
    write_folder(
        out, {f"{name}.html": data for name, data in files.items()}, task="pets", version="v1"
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_with_those_above_it_and_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", index=b"1")
    assert names(tmp_path / "a") == ["b"]
    assert names(tmp_path / "a" / "b") == ["index.html", "report.json"]


def test_a_report_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, index=b"1", old=b"1")
    write(out, index=b"2")
    assert names(out) == ["index.html", "report.json"]
    assert (out / "index.html").read_bytes() == b"2"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "out", index=b"1")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", index=b"1")
    assert names(tmp_path / "empty") == ["index.html", "report.json"]


def make_foreign(out: Path, what: str) -> None:
    if what == "a file":
        out.write_bytes(b"mine")
    elif what == "a link":
        (out.parent / "elsewhere").mkdir()
        out.symlink_to(out.parent / "elsewhere")
    elif what == "a folder of files":
        out.mkdir()
        (out / "index.html").write_bytes(b"mine")
    elif what == "a report and a file":
        write(out, index=b"1")
        (out / "notes.txt").write_bytes(b"mine")
    else:
        write(out, index=b"1")
        (out / "report.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    "what",
    ["a file", "a link", "a folder of files", "a report and a file", "a damaged record"],
)
def test_what_somebody_else_put_there_is_never_replaced(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    make_foreign(out, what)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for refused in (require_replaceable, lambda out: write(out, index=b"2")):
        with pytest.raises(StoreError, match="--out must be a"):
            refused(out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
