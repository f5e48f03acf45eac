"""What a training and its answers took, where it was trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..machine import Machine
from ..strict_record import Count, Line, Record

_Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CostRecord(Record):
    """Times of one batch, taken by turns in one process, and the memory of the training before."""

    machine: Machine
    device: Line
    """``cpu``, or the name of the GPU."""
    peak_memory_bytes: Count | None
    """Most that training and search took beyond what the process held before: tensors on a GPU,
    else resident memory; None where the system does not tell."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)]
    """Images of the batch that was timed."""
    merged_ms: _Milliseconds
    """Of the batch in the vanilla network, median: what every merged task takes."""
    unmerged_ms: _Milliseconds
    """Of the batch in the network as it was trained, median."""

    @property
    def slowdown(self) -> float:
        """How many times as long the network takes unmerged."""
        return self.unmerged_ms / self.merged_ms
