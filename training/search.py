"""Evolutionary search over the candidates of a supernet; pure, imports no torch.

Grown from the authors' ``GLoRA/evolution.py`` (arXiv:2306.07967, section 3.2), with these
differences on purpose: a parameter limit cannot hang the search (bounded tries, then repair), the
last generation is ranked too, ties go to the candidate with fewer parameters, none is scored
twice, one that can no longer rank need not be scored to its end, and there may be any number of
layers. What a candidate is, is the business of its genes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Generic, NamedTuple, Protocol, TypeVar

from glora_deploy.glora.forms import Form, LayerForms, SearchSpace, Subnet, Support

from .config import SearchConfig

TRIES_PER_CHILD = 10
"""The authors' factor: at most 250 tries for 25 children."""

Genome = tuple[int, ...]
"""Index of the option taken by each gene; a larger index stores fewer numbers."""

Candidate = TypeVar("Candidate")


class Score(NamedTuple):
    """What scoring a candidate came to."""

    fitness: float
    """Larger is better; the most that it could still reach, where it was given up."""
    whole: bool = True
    """Whether it was scored to its end."""


Worthwhile = Callable[[float], bool]
"""Whether a candidate of this fitness would be among the best known."""
Fitness = Callable[[Candidate, Worthwhile], Score]
"""Scores a candidate, and may give it up as soon as the most that it can still reach is not
worthwhile: it would not rank, so that the search takes the same way as with its whole score."""


class Genes(Protocol[Candidate]):
    """The choices that make a candidate, each independent of the others."""

    costs: tuple[tuple[int, ...], ...]
    """For each gene the numbers stored by each of its options, falling."""

    def encode(self, candidate: Candidate) -> Genome:
        """The options that a candidate takes."""

    def decode(self, genome: Genome) -> Candidate:
        """The candidate of these options."""


class SubnetGenes:
    """Every support of every layer that has a choice, in the order of the layers.

    Args:
        space: Of the subnets.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._layers = tuple(space.shapes)
        self._genes: list[tuple[str, Support, tuple[Form, ...]]] = []
        costs = []
        for layer, shape in space.shapes.items():
            for support, _ in LayerForms().items():
                options = space.choices(layer, support)
                if len(options) > 1:
                    self._genes.append((layer, support, options))
                    of_each = (
                        LayerForms(**{support: form}).n_parameters(shape) for form in options
                    )
                    costs.append(tuple(of_each))
        self.costs = tuple(costs)

    def encode(self, candidate: Subnet) -> Genome:
        """As ``Genes.encode``."""
        return tuple(
            options.index(candidate[layer][support]) for layer, support, options in self._genes
        )

    def decode(self, genome: Genome) -> Subnet:
        """As ``Genes.decode``."""
        paths: dict[str, dict[str, Form]] = {layer: {} for layer in self._layers}
        for (layer, support, options), i in zip(self._genes, genome, strict=True):
            paths[layer][support] = options[i]
        return Subnet({layer: LayerForms(**chosen) for layer, chosen in paths.items()})


@dataclass(frozen=True, slots=True)
class Scored(Generic[Candidate]):
    """One evaluated candidate."""

    candidate: Candidate
    fitness: float
    """Larger is better; the most that it could still reach, where it was given up."""
    n_parameters: int
    """Numbers it stores, classifier excluded."""
    whole: bool = True
    """Whether it was scored to its end."""


@dataclass(frozen=True, slots=True)
class SearchResult(Generic[Candidate]):
    """What a search found."""

    top: tuple[Scored[Candidate], ...]
    """The best ``top_k`` of all that were evaluated, best first."""
    n_evaluated: int
    """Distinct candidates scored."""
    best_fitness: tuple[float, ...]
    """The best fitness known after each generation."""
    generations: tuple[tuple[Scored[Candidate], ...], ...]
    """The candidates that are new in each generation, in the order they were evaluated."""

    @property
    def best(self) -> Scored[Candidate]:
        """The fittest candidate; of equals the one with fewest parameters, then the earliest."""
        return self.top[0]


class _Candidates:
    """Makes legal genomes that it has not made before."""

    def __init__(
        self, costs: tuple[tuple[int, ...], ...], config: SearchConfig, rng: random.Random
    ) -> None:
        self.costs = costs
        self.config = config
        self.rng = rng
        self.made: set[Genome] = set()

    def cost(self, genome: Genome) -> int:
        return sum(of_each[i] for of_each, i in zip(self.costs, genome, strict=True))

    def random(self) -> Genome:
        return tuple(self.rng.randrange(len(of_each)) for of_each in self.costs)

    def mutant(self, parents: Sequence[Genome]) -> Genome:
        """A parent with each gene redrawn with the mutation probability, perhaps to itself."""
        parent = self.rng.choice(parents)
        return tuple(
            self.rng.randrange(len(of_each))
            if self.rng.random() < self.config.mutation_probability
            else i
            for of_each, i in zip(self.costs, parent, strict=True)
        )

    def crossover(self, parents: Sequence[Genome]) -> Genome:
        """Each gene from either of two parents, which may coincide."""
        pair = self.rng.choice(parents), self.rng.choice(parents)
        return tuple(self.rng.choice(both) for both in zip(*pair, strict=True))

    def up_to(self, n: int, make: Callable[[], Genome]) -> list[Genome]:
        """At most n new legal genomes: as they come, and repaired where too few come legal."""
        found: list[Genome] = []
        for repair in (False, True):
            for _ in range(TRIES_PER_CHILD * n):
                if len(found) == n:
                    return found
                genome = self.repaired(make()) if repair else make()
                if self.legal(genome) and genome not in self.made:
                    self.made.add(genome)
                    found.append(genome)
        return found

    def legal(self, genome: Genome) -> bool:
        cost, limit = self.cost(genome), self.config.max_parameters
        return self.config.min_parameters <= cost and (limit is None or cost <= limit)

    def repaired(self, genome: Genome) -> Genome:
        """Shrink random genes until the genome is small enough, then grow others as allowed."""
        costs, chosen, cost = self.costs, list(genome), self.cost(genome)
        limit = self.config.max_parameters
        while limit is not None and cost > limit:
            for k in self.rng.sample(range(len(costs)), len(costs)):
                n_smaller = len(costs[k]) - 1 - chosen[k]
                if cost > limit and n_smaller:
                    cost -= costs[k][chosen[k]]
                    chosen[k] += self.rng.randint(1, n_smaller)
                    cost += costs[k][chosen[k]]
        for k in self.rng.sample(range(len(costs)), len(costs)):
            if cost >= self.config.min_parameters:
                break
            for larger in range(chosen[k]):
                grown = cost + costs[k][larger] - costs[k][chosen[k]]
                if limit is None or grown <= limit:
                    chosen[k], cost = larger, grown
                    break
        return tuple(chosen)


def evolve(
    genes: Genes[Candidate],
    fitness: Fitness[Candidate],
    config: SearchConfig,
    rng: random.Random,
    *,
    first: Sequence[Candidate] = (),
    report: Callable[[int, Scored[Candidate]], None] = lambda n_evaluated, best: None,
    on_generation: Callable[[tuple[Scored[Candidate], ...]], None] = lambda generation: None,
) -> SearchResult[Candidate]:
    """Search for the fittest candidate.

    The same rng state and fitness give the same search, so an interrupted one is resumed by
    starting again with a fitness that remembers.

    Args:
        genes: What candidates there are.
        fitness: Scores one; called once for each.
        config: Sizes, probability and parameter limits.
        rng: Every draw comes from it.
        first: Candidates to put into the first population, repaired if they break a limit.
        report: Called after each evaluation with how many there were and the best so far.
        on_generation: Called after each generation with those that were new in it.

    Returns:
        The best of all generations, the last one included.

    Raises:
        ValueError: If none within the parameter limits exists or was found.
    """
    candidates = _Candidates(genes.costs, config, rng)
    largest = candidates.cost((0,) * len(genes.costs))
    if config.min_parameters > largest:
        raise ValueError(
            f"search: min_parameters must be at most {largest}, the largest subnet, "
            f"got {config.min_parameters}"
        )
    scored: dict[Genome, Scored[Candidate]] = {}
    best_fitness: list[float] = []
    generations: list[tuple[Scored[Candidate], ...]] = []
    population = _first_population(candidates, [genes.encode(each) for each in first])
    if not population:
        raise ValueError(
            f"search: found no subnet with {config.min_parameters} to "
            f"{config.max_parameters} parameters. Widen the limits."
        )
    ranking: list[Genome] = []
    for _ in range(config.generations + 1):
        for genome in population:
            candidate, cost = genes.decode(genome), candidates.cost(genome)

            def worthwhile(value: float, cost: int = cost) -> bool:
                last = scored[ranking[-1]] if len(ranking) == config.top_k else None
                return last is None or (-value, cost) < (-last.fitness, last.n_parameters)

            score = fitness(candidate, worthwhile)
            scored[genome] = Scored(candidate, score.fitness, cost, score.whole)
            ranking.append(genome)
            ranking.sort(key=lambda g: (-scored[g].fitness, scored[g].n_parameters))
            del ranking[config.top_k :]
            report(len(scored), scored[ranking[0]])
        best_fitness.append(scored[ranking[0]].fitness)
        generations.append(tuple(scored[genome] for genome in population))
        on_generation(generations[-1])
        population = _next_population(candidates, ranking)
        if not population:  # a small space has been scored whole
            break
    top = tuple(scored[genome] for genome in ranking)
    return SearchResult(top, len(scored), tuple(best_fitness), tuple(generations))


def _first_population(candidates: _Candidates, first: list[Genome]) -> list[Genome]:
    population = [g for genome in first for g in candidates.up_to(1, repeat(genome).__next__)]
    missing = candidates.config.population - len(population)
    return population + candidates.up_to(missing, candidates.random)


def _next_population(candidates: _Candidates, parents: list[Genome]) -> list[Genome]:
    config = candidates.config
    mutants = candidates.up_to(config.mutations, lambda: candidates.mutant(parents))
    children = candidates.up_to(config.crossovers, lambda: candidates.crossover(parents))
    population = mutants + children
    missing = config.population - len(population)
    return population + candidates.up_to(missing, candidates.random)
