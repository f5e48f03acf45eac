"""What was trained for comparison alone: how good it was, and why nothing of it can be merged.

A record in ``.comparisons/<task>/<name>.json``, beside the tasks: there is no delta, so nothing
that reads versions meets it, but who asks for one by this name is told.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..errors import ArtifactError
from ..record_file import parse_record, read_bytes
from ..strict_record import Count, Line, Record
from .atomic_files import replace_file
from .cost_record import CostRecord
from .manifest_fields import FileRecord, Fraction, TaskName, Time, VersionName

COMPARISONS = ".comparisons"
CHECKPOINT = ".safetensors"
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
    """Why it left no version, as half a sentence."""
    backbone: Line
    data: Line
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    epochs: Count
    seconds: _NotNegative
    """Of training and search."""
    n_parameters: Count
    """Numbers that were trained, of the best candidate where there was a search; the classifier
    not counted."""
    val_accuracy: Fraction
    test_accuracy: Fraction
    cost: CostRecord | None = None
    """None if an earlier release trained it."""
    checkpoint: FileRecord | None = None
    """``NAME.safetensors`` beside the record: timm's state dict, where the network is vanilla."""


def write_comparison(root: Path, record: Comparison, checkpoint: bytes | None = None) -> Path:
    """Keep a comparison; one of the same name is replaced.

    Args:
        root: Of the store.
        record: Without ``checkpoint``.
        checkpoint: A safetensors file.

    Raises:
        OSError: If it cannot be written.
    """
    place = _place(root, record.task, record.name)
    weights = place.with_suffix(CHECKPOINT)
    place.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        weights.unlink(missing_ok=True)  # of the one that is replaced
    else:
        replace_file(weights, checkpoint, root / ".tmp")
        digest = hashlib.sha256(checkpoint).hexdigest()
        stated = FileRecord(sha256=digest, size_bytes=len(checkpoint))
        record = record.model_copy(update={"checkpoint": stated})
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
