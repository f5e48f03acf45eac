"""What was trained for comparison alone: how good it was, and why nothing of it can be merged.

A record in ``.comparisons/<task>/<name>.json``, beside the tasks: there is no delta, so nothing
that reads versions meets it, but who asks for one by this name is told.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..errors import ArtifactError
from ..record_file import parse_record, read_bytes
from ..strict_record import Count, Line, Record
from .atomic_files import replace_file
from .manifest_fields import Fraction, TaskName, Time, VersionName

COMPARISONS = ".comparisons"
MAX_BYTES = 64 * 2**10

_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Comparison(Record):
    """One training."""

    comparison_version: Literal[1] = 1
    task: TaskName
    name: VersionName
    created: Time
    method: VersionName
    why: Line
    """Why nothing of it can be merged, as half a sentence."""
    backbone: Line
    data: Line
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    epochs: Count
    seconds: _NotNegative
    """Of training."""
    n_parameters: Count
    """Numbers that were trained, the classifier not counted."""
    val_accuracy: Fraction
    test_accuracy: Fraction


def write_comparison(root: Path, record: Comparison) -> Path:
    """Keep a comparison; one of the same name is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    place = _place(root, record.task, record.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, record.to_json(), root / ".tmp")
    return place


def read_comparison(root: Path, task: str, name: str) -> Comparison | None:
    """A comparison; None if there is none of this name, or it cannot be read."""
    place = _place(root, task, name)
    with suppress(OSError, ArtifactError):
        return parse_record(Comparison, read_bytes(place, MAX_BYTES), str(place))
    return None


def comparisons(root: Path) -> list[Comparison]:
    """All that can be read, by task and name."""
    places = sorted((root / COMPARISONS).glob("*/*.json"))
    found = (read_comparison(root, place.parent.name, place.stem) for place in places)
    return [each for each in found if each is not None]


def _place(root: Path, task: str, name: str) -> Path:
    return root / COMPARISONS / task / f"{name}.json"
