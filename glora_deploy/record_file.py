"""A JSON file as a record: what it says, or one line on what is wrong and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .errors import ArtifactError
from .strict_record import first_problem

MAX_RECORD_BYTES = 16 * 2**20
"""No file of ours comes near it."""

Model = TypeVar("Model", bound=BaseModel)


def read_record(kind: type[Model], path: Path, remedy: str) -> Model:
    """What a JSON file says.

    Args:
        kind: Of record.
        path: The file.
        remedy: What to do about one that is missing or damaged: a sentence.

    Raises:
        ArtifactError: If it is missing, larger than ``MAX_RECORD_BYTES``, no JSON, or breaks a rule
            of the record; names the first field that does.
    """
    return parse_record(kind, read_bytes(path, remedy=remedy), str(path), remedy)


def parse_record(kind: type[Model], data: bytes, where: str, remedy: str = "") -> Model:
    """What the bytes of a JSON file say.

    Args:
        kind: Of record.
        data: All of the file.
        where: Named in errors.
        remedy: As for ``read_record``; none by default.

    Raises:
        ArtifactError: If they are no JSON, or break a rule of the record.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        fix = f". {remedy}" if remedy else ""
        raise ArtifactError(f"{where}: {first_problem(error)}{fix}") from error


def read_bytes(path: Path, limit: int = MAX_RECORD_BYTES, remedy: str = "Restore it.") -> bytes:
    """The bytes of a regular file of at most this size.

    Raises:
        ArtifactError: If it is missing, not a file, or larger.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: must be a file, none is here. {remedy}")
    size_bytes = path.stat().st_size
    if size_bytes > limit:
        raise ArtifactError(f"{path}: must have at most {limit} bytes, got {size_bytes}")
    return path.read_bytes()
