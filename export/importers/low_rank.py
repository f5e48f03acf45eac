"""How many singular values of each layer's change to keep."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .assemble import Array

SHARES = (0.9, 0.99, 0.999)
"""Of the energy, for which a report states the rank that it needs."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one change, and what each of them costs."""

    values: NDArray[np.float64]
    """Largest first, those of rounding left out."""
    shape: tuple[int, int]
    """Of the change."""

    @classmethod
    def of(cls, change: Array) -> Spectrum:
        """Of a matrix.

        What is smaller than the rounding of float32 checkpoints leaves behind is none.
        """
        values = np.linalg.svd(change, compute_uv=False).astype(np.float64)
        rounding = np.finfo(np.float32).eps * values[0] if len(values) else 0.0
        return cls(values[values > rounding], (change.shape[0], change.shape[1]))

    @property
    def numbers(self) -> int:
        """Stored for each rank."""
        return sum(self.shape)

    @property
    def energy(self) -> float:
        """The squared norm of the change."""
        return float((self.values**2).sum())

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps this share of the energy."""
        kept = np.cumsum(self.values**2)
        return int(np.searchsorted(kept, share * self.energy * (1 - 1e-12))) + 1 if len(kept) else 0


def truncated(change: Array, rank: int) -> tuple[Array, Array]:
    """The best approximation of a rank: ``down (d_out, rank)`` times ``up (rank, d_in)``.

    The singular values are shared by halves, so that neither factor is much larger than the other.
    """
    left, values, right = np.linalg.svd(change, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def ranks_for_energy(spectra: Mapping[str, Spectrum], share: float) -> dict[str, int]:
    """Fewest numbers that keep a share of the energy of all changes together.

    Args:
        spectra: By layer.
        share: 0 to 1; 1 keeps all that is above rounding.
    """
    if share >= 1:
        return {layer: len(each.values) for layer, each in spectra.items()}
    missing = share * sum(each.energy for each in spectra.values())
    ranks = dict.fromkeys(spectra, 0)
    for layer, value in _by_worth(spectra):
        if missing <= 0:
            break
        ranks[layer] += 1
        missing -= value**2
    return ranks


def ranks_for_numbers(spectra: Mapping[str, Spectrum], n_numbers: int) -> dict[str, int]:
    """Most energy for so many numbers: those singular values that buy most for each number.

    A value that no longer fits is passed over with all after it of the same layer.
    """
    ranks, closed = dict.fromkeys(spectra, 0), set()
    for layer, _ in _by_worth(spectra):
        if layer in closed:
            continue
        if (cost := spectra[layer].numbers) > n_numbers:
            closed.add(layer)
            continue
        ranks[layer] += 1
        n_numbers -= cost
    return ranks


def _by_worth(spectra: Mapping[str, Spectrum]) -> Sequence[tuple[str, float]]:
    """Singular values of all layers, by their squares for each number that they cost."""
    streams = [
        [(-(value**2) / each.numbers, layer, float(value)) for value in each.values]
        for layer, each in spectra.items()
    ]
    return [(layer, value) for _, layer, value in heapq.merge(*streams)]
