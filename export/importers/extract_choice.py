"""What decides on the size of an extracted delta."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """What decides on the ranks; exactly one is given."""

    energy: float | None = None
    """Share of the squared change of all layers together that is kept, above 0 to 1."""
    budget_bytes: int | None = None
    """Of adapter.safetensors."""
    rank: int | None = None
    """The same for every layer."""

    def __post_init__(self) -> None:
        given = [self.energy, self.budget_bytes, self.rank]
        if sum(each is not None for each in given) != 1:
            raise ValueError("exactly one of energy, budget and rank must be given")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must be above 0 and at most 1, got {self.energy}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
