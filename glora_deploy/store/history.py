"""history.json: how a training went, epoch by epoch and candidate by candidate (docs/format.md).

It lies beside a version, as ``companions`` says; nothing that is computed depends on it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..record_file import parse_record
from ..strict_record import Count, Record
from .artifact import Artifact
from .companions import HISTORY
from .cost_record import CostRecord
from .manifest_fields import Fraction
from .reader import StoreReader

HISTORY_VERSION: Literal[1] = 1

_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Number = Annotated[int, Field(ge=1, le=2**40)]
StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""``training``, ``retraining``, or the name of a method that trains once and searches nothing."""


class EpochRecord(Record):
    """One pass over the training images."""

    epoch: _Number
    """Counted from 1."""
    loss: _NotNegative
    """Cross-entropy, mean over the steps."""
    accuracy: Fraction
    """Top-1 on the batches that it trained on, each before its step."""
    learning_rate: _NotNegative
    """Mean over the steps."""
    seconds: _NotNegative
    """Of the steps alone."""


class ValidationRecord(Record):
    """One measurement on the validation split."""

    after_epoch: _Number
    """Epochs done."""
    accuracy: Fraction
    """Top-1 of the subnet that is stored."""


class StageRecord(Record):
    """All epochs of one optimiser."""

    stage: StageName
    """``retraining`` trains the chosen subnet on train and val together."""
    supernet_epochs: Count
    """So many of the first epochs train random subnets, those after them one subnet alone."""
    epochs: Annotated[tuple[EpochRecord, ...], Field(min_length=1)]
    """Consecutive; the first is 1, or later if a release without histories began the training."""
    validations: tuple[ValidationRecord, ...]
    """In order; empty if nothing was measured."""

    @model_validator(mode="after")
    def _in_order(self) -> StageRecord:
        for before, after in pairwise(self.epochs):
            if after.epoch != before.epoch + 1:
                raise ValueError(
                    f"epochs must be consecutive, got {after.epoch} after {before.epoch}"
                )
        last, measured = self.epochs[-1].epoch, [each.after_epoch for each in self.validations]
        if measured != sorted(set(measured)) or measured[-1:] > [last]:
            raise ValueError(f"validations must be in order, up to epoch {last}, got {measured}")
        return self


class CandidateRecord(Record):
    """One subnet that a search measured."""

    n_parameters: Count
    """Numbers it stores, classifier excluded."""
    val_accuracy: Fraction
    """Top-1 with the supernet's weights as they were; the most that it could still reach, where it
    was given up."""
    whole: bool = True
    """Whether it was measured to its end, and not given up once it could no longer rank."""


class SearchRecord(Record):
    """What an evolutionary search went through."""

    seconds: _NotNegative
    generations: Annotated[
        tuple[Annotated[tuple[CandidateRecord, ...], Field(min_length=1)], ...],
        Field(min_length=1),
    ]
    """The subnets that are new in each generation, in the order they were measured."""
    chosen: CandidateRecord
    """The one that was chosen."""

    def best_so_far(self) -> list[float]:
        """The best accuracy known after each generation."""
        found: list[float] = []
        for generation in self.generations:
            measured = [each.val_accuracy for each in generation if each.whole]
            found.append(max(measured + found[-1:]))
        return found

    @model_validator(mode="after")
    def _chosen_is_one(self) -> SearchRecord:
        if not any(self.chosen in generation for generation in self.generations):
            raise ValueError("chosen must be one of the candidates")
        if not self.chosen.whole:
            raise ValueError("chosen must have been measured to its end")
        if not any(each.whole for each in self.generations[0]):
            raise ValueError("one of the first generation must have been measured to its end")
        return self


class History(Record):
    """All of history.json."""

    history_version: Literal[1]
    stages: Annotated[tuple[StageRecord, ...], Field(min_length=1)]
    """In the order they were trained."""
    search: SearchRecord | None
    """None where there was none."""
    cost: CostRecord | None = None
    """None if an earlier release trained it."""

    @model_validator(mode="after")
    def _one_of_each(self) -> History:
        names = [each.stage for each in self.stages]
        if len(names) != len(set(names)):
            raise ValueError(f"stages must differ, got {', '.join(names)}")
        return self

    @classmethod
    def from_json(cls, data: bytes, where: str = HISTORY) -> History:
        """Read what ``to_json`` wrote.

        Raises:
            ArtifactError: If it is none; names the first field that is wrong.
        """
        return parse_record(cls, data, where, "Restore the file.")


def read_history(store: StoreReader, artifact: Artifact) -> History | None:
    """The history of a version; None if it has none.

    Raises:
        ArtifactError: If it is damaged.
        StoreError: If it is a link.
    """
    data = store.companion(artifact, HISTORY)
    if data is None:
        return None
    return History.from_json(data, str(artifact.path / HISTORY))
