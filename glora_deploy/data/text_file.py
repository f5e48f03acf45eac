"""Lines of a small text file that people write: in UTF-8, with or without a byte-order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..errors import DataError

_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 text file without their ends (``\n``, ``\r\n`` or ``\r``).

    A byte-order mark, which some editors write, is no part of the first line. Only these ends
    break a line: ``str.splitlines`` would also break at a form feed or U+2028 within a name.

    Raises:
        DataError: If it cannot be read or is not UTF-8; names the line and how to convert it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: must be a readable UTF-8 text file: {error.strerror}") from error
    for mark, encoding in _WIDE_MARKS.items():
        if data.startswith(mark):
            raise DataError(
                f"{path}: must be a readable UTF-8 text file, got {encoding}. {_convert(encoding)}"
            )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: must be a readable UTF-8 text file, got the byte "
            f"0x{error.object[error.start]:02x} in line {number}. {_convert('LATIN1')}"
        ) from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; blank lines after the last are dropped.

    Raises:
        DataError: If it cannot be read, or a blank line stands before a name: it would give
            every name after it to another class.
    """
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(
                f"{path}: line {number} must be a name, got a blank line, which would shift "
                "the names after it. Remove it, or name the class."
            )
    return tuple(names)


def _convert(encoding: str) -> str:
    return f"Convert it, for instance with: iconv -f {encoding} -t UTF-8 OLD > NEW"
