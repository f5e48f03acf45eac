"""What was trained for comparison alone: how good it was, and why nothing of it can be merged.

A record in ``.comparisons/<task>/<name>.json``, beside the tasks: there is no delta, so nothing
that reads versions meets it, but who asks for one by this name is told.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from itertools import chain, count
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


class ComparisonRecord(Record):
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


def write_comparison(root: Path, record: ComparisonRecord, checkpoint: bytes | None = None) -> Path:
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


def read_comparison(root: Path, task: str, name: str) -> ComparisonRecord | None:
    """A comparison; None if there is none of this name, or it cannot be read."""
    place = _place(root, task, name)
    with suppress(OSError, ArtifactError):
        record = parse_record(ComparisonRecord, read_bytes(place, MAX_BYTES), str(place))
        return record if (record.task, record.name) == (task, name) else None
    return None


def comparisons(root: Path) -> list[ComparisonRecord]:
    """All that can be read, by task and name."""
    found = (read_comparison(root, place.parent.name, place.stem) for place in _places(root))
    return [each for each in found if each is not None]


def free_name(root: Path, task: str, method: str, seed: int) -> str:
    """``METHOD-SEED``, or with the first number behind it that nothing of the task has yet."""
    name = f"{method}-{seed}"
    taken = {place.stem for place in _places(root) if place.parent.name == task}
    taken |= {place.name for place in (root / task).glob("*")}
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


def has_comparison(root: Path, task: str, name: str) -> bool:
    """Whether there is one of this name, readable or not."""
    return _place(root, task, name).exists()


def remove_comparison(root: Path, task: str, name: str) -> None:
    """Remove one, and its checkpoint.

    Raises:
        OSError: If it is not there, or cannot be removed.
    """
    place = _place(root, task, name)
    place.unlink()
    place.with_suffix(CHECKPOINT).unlink(missing_ok=True)
    with suppress(OSError):  # others are in it
        place.parent.rmdir()


def damaged_comparisons(root: Path) -> dict[tuple[str, str], str]:
    """What is wrong with records and checkpoints, one line each, by task and name."""
    found: dict[tuple[str, str], str] = {}
    for place in _places(root):
        task, name = place.parent.name, place.stem
        try:
            record = parse_record(ComparisonRecord, read_bytes(place, MAX_BYTES), str(place))
            if (record.task, record.name) != (task, name):
                raise ArtifactError(
                    f"{place}: must be that of {task}/{name}, it states "
                    f"{record.task}/{record.name}. Restore the file, or remove it."
                )
            if record.checkpoint is not None:
                weights = place.with_suffix(CHECKPOINT)
                record.checkpoint.require_equal(
                    FileRecord.of_file(weights), str(weights), place.name, "Restore the file."
                )
        except (ArtifactError, OSError) as error:
            found[task, name] = str(error)
    return found


def _places(root: Path) -> list[Path]:
    return sorted((root / COMPARISONS).glob("*/*.json"))


def _place(root: Path, task: str, name: str) -> Path:
    return root / COMPARISONS / task / f"{name}.json"
