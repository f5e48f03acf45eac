from __future__ import annotations

import re
from pathlib import Path

import pytest

from glora_deploy import record_file
from glora_deploy.errors import ArtifactError
from glora_deploy.record_file import parse_record, read_record
from glora_deploy.strict_record import Line, Record


class Note(Record):
    text: Line
    n_seen: int = 0


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_record(Note, path, "Write it again.")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path, note = tmp_path / "note.json", Note(text="Führerschein", n_seen=3)
    path.write_bytes(note.to_json())
    assert path.read_bytes() == '{\n "text": "Führerschein",\n "n_seen": 3\n}\n'.encode()
    assert read_record(Note, path, "") == note


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{}", "text: must be present. Write it again."),
        (b'{"text": "a", "more": 1}', "more: is not a field of this format. Write it again."),
        (b'{"text": "a", "n_seen": 1.5}', "n_seen: must be a valid integer, got 1.5. Write it"),
        (b'{"text": "a\\nb"}', "text: must be one line without control characters. Write it"),
        (
            b'{"text": 1, "more": 1}',
            "text: must be a valid string, got 1 (1 more). Write it again.",
        ),
        (b'{"text": "\xff"}', "Invalid JSON: "),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (b"", "Invalid JSON: EOF while parsing"),
    ],
)
def test_a_broken_rule_is_said_in_one_line_with_the_file_and_what_to_do(
    tmp_path: Path, data: bytes, problem: str
) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"{path}: {problem}")
    assert message.endswith(". Write it again.")


def test_bytes_without_a_remedy_are_refused_without_one() -> None:
    with pytest.raises(ArtifactError, match=r"^pack: text: must be present$"):
        parse_record(Note, b"{}", "pack")


def test_a_missing_file_a_folder_and_one_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.json"
    assert refusal(path) == f"{path}: must be a file, none is here. Write it again."
    assert refusal(tmp_path) == f"{tmp_path}: must be a file, none is here. Write it again."
    path.write_bytes(Note(text="a").to_json() + b" " * record_file.MAX_RECORD_BYTES)
    assert re.match(rf"{path}: must have at most 16777216 bytes, got 167772\d\d", refusal(path))
