"""Evolutionary search over the subnets of a supernet; pure, imports no torch.

Grown from the authors' ``GLoRA/evolution.py`` (arXiv:2306.07967, section 3.2), with these
differences on purpose: a parameter limit cannot hang the search (bounded tries, then repair), the
last generation is ranked too, ties go to the subnet with fewer parameters, no subnet is scored
twice, and there may be any number of layers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

from glora_deploy.glora.forms import Form, LayerForms, SearchSpace, Subnet, Support

from .config import SearchConfig

TRIES_PER_CHILD = 10
"""The authors' factor: at most 250 tries for 25 children."""

Genome = tuple[int, ...]
"""Index of the option taken by each gene; a larger index stores fewer numbers."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One evaluated subnet."""

    subnet: Subnet
    fitness: float
    """Larger is better."""
    n_parameters: int
    """Numbers it stores, classifier excluded."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found."""

    top: tuple[Scored, ...]
    """The best ``top_k`` of all evaluated subnets, best first."""
    n_evaluated: int
    """Distinct subnets scored."""
    best_fitness: tuple[float, ...]
    """The best fitness known after each generation."""
    generations: tuple[tuple[Scored, ...], ...]
    """The subnets that are new in each generation, in the order they were evaluated."""

    @property
    def best(self) -> Scored:
        """The fittest subnet; of equals the one with fewest parameters, then the earliest."""
        return self.top[0]


@dataclass(frozen=True, slots=True)
class _Gene:
    layer: str
    support: Support
    options: tuple[Form, ...]
    costs: tuple[int, ...]
    """Numbers stored by each option, falling."""


class _Candidates:
    """Makes legal genomes that it has not made before."""

    def __init__(self, space: SearchSpace, config: SearchConfig, rng: random.Random) -> None:
        self.config = config
        self.rng = rng
        self.genes = _genes(space)
        self.layers = tuple(space.shapes)
        self.made: set[Genome] = set()

    def cost(self, genome: Genome) -> int:
        return sum(gene.costs[i] for gene, i in zip(self.genes, genome, strict=True))

    def encode(self, subnet: Subnet) -> Genome:
        return tuple(gene.options.index(subnet[gene.layer][gene.support]) for gene in self.genes)

    def decode(self, genome: Genome) -> Subnet:
        paths: dict[str, dict[str, Form]] = {layer: {} for layer in self.layers}
        for gene, i in zip(self.genes, genome, strict=True):
            paths[gene.layer][gene.support] = gene.options[i]
        return Subnet({layer: LayerForms(**chosen) for layer, chosen in paths.items()})

    def random(self) -> Genome:
        return tuple(self.rng.randrange(len(gene.options)) for gene in self.genes)

    def mutant(self, parents: Sequence[Genome]) -> Genome:
        """A parent with each gene redrawn with the mutation probability, perhaps to itself."""
        parent = self.rng.choice(parents)
        return tuple(
            self.rng.randrange(len(gene.options))
            if self.rng.random() < self.config.mutation_probability
            else i
            for gene, i in zip(self.genes, parent, strict=True)
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
        genes, chosen, cost = self.genes, list(genome), self.cost(genome)
        limit = self.config.max_parameters
        while limit is not None and cost > limit:
            for k in self.rng.sample(range(len(genes)), len(genes)):
                n_smaller = len(genes[k].options) - 1 - chosen[k]
                if cost > limit and n_smaller:
                    cost -= genes[k].costs[chosen[k]]
                    chosen[k] += self.rng.randint(1, n_smaller)
                    cost += genes[k].costs[chosen[k]]
        for k in self.rng.sample(range(len(genes)), len(genes)):
            if cost >= self.config.min_parameters:
                break
            for larger in range(chosen[k]):
                grown = cost + genes[k].costs[larger] - genes[k].costs[chosen[k]]
                if limit is None or grown <= limit:
                    chosen[k], cost = larger, grown
                    break
        return tuple(chosen)


def _genes(space: SearchSpace) -> tuple[_Gene, ...]:
    """Every support of every layer that has a choice, in the order of the layers."""
    found = []
    for layer, shape in space.shapes.items():
        for support, _ in LayerForms().items():
            options = space.choices(layer, support)
            if len(options) > 1:
                costs = [LayerForms(**{support: p}).n_parameters(shape) for p in options]
                found.append(_Gene(layer, support, options, tuple(costs)))
    return tuple(found)


def evolve(
    space: SearchSpace,
    fitness: Callable[[Subnet], float],
    config: SearchConfig,
    rng: random.Random,
    *,
    first: Sequence[Subnet] = (),
    report: Callable[[int, Scored], None] = lambda n_evaluated, best: None,
    on_generation: Callable[[tuple[Scored, ...]], None] = lambda generation: None,
) -> SearchResult:
    """Search the space for the fittest subnet.

    The same rng state and fitness give the same search, so an interrupted one is resumed by
    starting again with a fitness that remembers.

    Args:
        space: What subnets there are.
        fitness: Scores a subnet, larger is better; called once per subnet.
        config: Sizes, probability and parameter limits.
        rng: Every draw comes from it.
        first: Subnets to put into the first population, repaired if they break a limit.
        report: Called after each evaluation with how many there were and the best so far.
        on_generation: Called after each generation with the subnets that were new in it.

    Returns:
        The best subnets of all generations, the last one included.

    Raises:
        ValueError: If no subnet within the parameter limits exists or was found.
    """
    candidates = _Candidates(space, config, rng)
    largest = candidates.cost((0,) * len(candidates.genes))
    if config.min_parameters > largest:
        raise ValueError(
            f"search: min_parameters must be at most {largest}, the largest subnet, "
            f"got {config.min_parameters}"
        )
    scored: dict[Genome, Scored] = {}
    best_fitness: list[float] = []
    generations: list[tuple[Scored, ...]] = []
    population = _first_population(candidates, [candidates.encode(subnet) for subnet in first])
    if not population:
        raise ValueError(
            f"search: found no subnet with {config.min_parameters} to "
            f"{config.max_parameters} parameters. Widen the limits."
        )
    ranking: list[Genome] = []
    for _ in range(config.generations + 1):
        for genome in population:
            subnet = candidates.decode(genome)
            scored[genome] = Scored(subnet, fitness(subnet), candidates.cost(genome))
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
