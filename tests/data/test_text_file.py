from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from glora_deploy.data.text_file import read_lines, read_names
from glora_deploy.errors import DataError

LINES = st.lists(st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"])))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", "\r"]), mark=st.booleans())
def test_lines_come_back_whatever_ends_them_and_with_a_mark_or_without(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, mark: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    text = "".join(f"{line}{end}" for line in lines)
    write(path, text.encode("utf-8-sig" if mark else "utf-8"))
    assert read_lines(path) == lines


def test_a_last_line_without_an_end_counts(tmp_path: Path) -> None:
    assert read_lines(write(tmp_path / "a", b"one\ntwo")) == ["one", "two"]


def test_a_byte_that_is_not_utf_8_is_named_with_its_line_and_a_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.txt", "dog\ncafé\n".encode("latin1"))
    message = rf"^{path}: .*UTF-8 text file, got the byte 0xe9 in line 2. Convert it.*iconv -f LAT"
    with pytest.raises(DataError, match=message):
        read_lines(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""
    path = write(tmp_path / "a", (mark + "cat\n").encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(DataError, match=rf"got {name}. Convert it, .*iconv -f {name} -t UTF-8"):
        read_lines(path)


def test_names_lose_their_blanks_and_the_lines_after_the_last(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "\ufeff cat \r\ndog\n\n \n".encode())
    assert read_names(path) == ("cat", "dog")


@pytest.mark.parametrize(("text", "line"), [("cat\n\ndog\n", 2), ("\ncat\ndog", 1)])
def test_a_blank_line_before_a_name_is_refused(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path / "a", text.encode())
    with pytest.raises(DataError, match=rf"^{path}: line {line} must be a name, got a blank"):
        read_names(path)
