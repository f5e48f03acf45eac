"""Fitnesses for searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glora_deploy.training.search import Fitness, Score


def whole(fitness: Callable[[Any], float]) -> Fitness[Any]:
    """A fitness that gives nothing up."""
    return lambda candidate, worthwhile: Score(fitness(candidate))
