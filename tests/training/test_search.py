from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from glora_deploy.glora.forms import (
    NONE,
    SUPPORTS,
    VECTOR,
    Form,
    LayerForms,
    LayerShape,
    SearchSpace,
    Subnet,
)
from glora_deploy.training.config import SearchConfig
from glora_deploy.training.search import (
    Score,
    Scored,
    SearchResult,
    SubnetGenes,
    Worthwhile,
    evolve,
)
from scores import whole

SMALL = SearchConfig(population=12, generations=6, top_k=4, mutations=6, crossovers=6)


def make_space(n_layers: int = 7, ranks: tuple[int, ...] = (3, 2)) -> SearchSpace:
    shapes = {
        f"blocks.{i}.fc": LayerShape(kind="linear", d_out=5 + i, d_in=4, bias=i % 3 != 0)
        for i in range(n_layers)
    }
    return SearchSpace(shapes, ranks)


def agreement(wanted: Subnet) -> Callable[[Subnet], float]:
    """The share of supports that are as in a planted subnet."""

    def fitness(subnet: Subnet) -> float:
        pairs = [
            paths[support] == path
            for layer, paths in subnet.items()
            for support, path in wanted[layer].items()
        ]
        return sum(pairs) / len(pairs)

    return fitness


def always(value: float) -> Callable[[Subnet], float]:
    return lambda subnet: value


class Counted:
    """A fitness that keeps what it was asked."""

    def __init__(self, fitness: Callable[[Subnet], float]) -> None:
        self.fitness = fitness
        self.asked: list[Subnet] = []

    def __call__(self, subnet: Subnet) -> float:
        self.asked.append(subnet)
        return self.fitness(subnet)


def test_a_planted_subnet_is_approached_better_than_by_random_draws() -> None:
    space = make_space()
    for seed in range(3):
        fitness = Counted(agreement(space.draw(random.Random(f"planted {seed}"))))
        config = SearchConfig(population=30, generations=20, top_k=8, mutations=15, crossovers=15)
        result = evolve(SubnetGenes(space), whole(fitness), config, random.Random(seed))
        rng = random.Random(seed)
        drawn = max(fitness.fitness(space.draw(rng)) for _ in range(result.n_evaluated))
        assert result.n_evaluated == 30 * 21
        assert result.best.fitness >= drawn + 0.15


@pytest.mark.parametrize("seed", range(8))
def test_a_search_that_gives_up_hopeless_subnets_takes_the_same_way(seed: int) -> None:
    space = make_space()
    accuracy = agreement(space.draw(random.Random(f"planted {seed}")))
    n, asked = 20, 0  # so few images that many subnets have the same accuracy

    def answers(subnet: Subnet) -> list[bool]:
        """Whether each image is answered right; the wrong ones are anywhere."""
        n_right = round(accuracy(subnet) * n)
        right = [place < n_right for place in range(n)]
        random.Random(str(subnet)).shuffle(right)
        return right

    def patient(subnet: Subnet) -> float:
        return sum(answers(subnet)) / n

    def impatient(subnet: Subnet, worthwhile: Worthwhile) -> Score:
        nonlocal asked
        n_wrong = 0
        for done, right in enumerate(answers(subnet), 1):
            asked += 1
            n_wrong += not right
            if not worthwhile((n - n_wrong) / n):
                return Score((n - n_wrong) / n, whole=done == n)
        return Score((n - n_wrong) / n)

    genes = SubnetGenes(space)
    expected = evolve(genes, whole(patient), SMALL, random.Random(seed))
    found = evolve(genes, impatient, SMALL, random.Random(seed))
    assert found.top == expected.top
    assert found.best_fitness == expected.best_fitness
    for before, after in zip(expected.generations, found.generations, strict=True):
        for each, other in zip(before, after, strict=True):
            assert other.candidate == each.candidate
            assert other.fitness == each.fitness if other.whole else other.fitness >= each.fitness
    assert _n_whole(found) < _n_whole(expected) == expected.n_evaluated
    assert asked < n * expected.n_evaluated


def _n_whole(result: SearchResult[Subnet]) -> int:
    return sum(each.whole for generation in result.generations for each in generation)


def test_a_subnet_that_could_still_rank_by_its_size_is_worthwhile() -> None:
    space = make_space()
    told: list[tuple[int, bool, bool]] = []

    def level(subnet: Subnet, worthwhile: Worthwhile) -> Score:
        told.append((subnet.n_parameters(space.shapes), worthwhile(0.5), worthwhile(0.6)))
        return Score(0.5)

    evolve(SubnetGenes(space), level, SMALL, random.Random(0))
    best: list[int] = []
    for size, as_good, better in told:
        full = len(best) == SMALL.top_k
        assert as_good == (not full or size < best[-1])
        assert better
        best = sorted([*best, size])[: SMALL.top_k]


def test_no_subnet_is_scored_twice_and_all_are_in_the_space() -> None:
    space = make_space(2)
    fitness = Counted(agreement(space.largest()))
    result = evolve(SubnetGenes(space), whole(fitness), SMALL, random.Random(0))
    assert len(fitness.asked) == len(set(fitness.asked)) == result.n_evaluated == 12 * 7
    for subnet in fitness.asked:
        assert subnet.keys() == space.shapes.keys()
        for layer, paths in subnet.items():
            assert all(path in space.choices(layer, support) for support, path in paths.items())


def test_the_last_generation_is_ranked_too() -> None:
    space = make_space()
    fitness = Counted(lambda subnet: float(len(fitness.asked)))
    result = evolve(SubnetGenes(space), whole(fitness), SMALL, random.Random(0))
    assert result.best.fitness == result.n_evaluated
    assert result.best.candidate == fitness.asked[-1]
    assert result.best_fitness == tuple(12.0 * (g + 1) for g in range(7))


def test_ties_go_to_fewer_parameters_then_to_the_earlier() -> None:
    space = make_space()
    fitness = Counted(always(0.5))
    result = evolve(SubnetGenes(space), whole(fitness), SMALL, random.Random(0))
    counts = [subnet.n_parameters(space.shapes) for subnet in fitness.asked]
    assert [each.n_parameters for each in result.top] == sorted(counts)[:4]
    assert result.best.candidate == fitness.asked[counts.index(min(counts))]


@pytest.mark.parametrize("limit", [0, 1, 7, 40, 150, 400])
def test_every_subnet_scored_keeps_the_limit_however_tight(limit: int) -> None:
    space = make_space()
    fitness = Counted(always(0.0))
    config = SearchConfig(
        population=12, generations=3, top_k=4, mutations=6, crossovers=6, max_parameters=limit
    )
    evolve(SubnetGenes(space), whole(fitness), config, random.Random(0))
    counts = [subnet.n_parameters(space.shapes) for subnet in fitness.asked]
    assert max(counts) <= limit
    assert max(counts) >= limit * 0.8


def test_random_subnets_within_the_limit_are_taken_as_they_come() -> None:
    space, limit = make_space(), 260
    fitness = Counted(always(0.0))
    config = SearchConfig(
        population=12, generations=0, mutations=6, crossovers=6, max_parameters=limit
    )
    evolve(SubnetGenes(space), whole(fitness), config, random.Random(4))
    rng = random.Random(4)
    drawn = []
    for _ in range(60):
        chosen: dict[str, dict[str, Form]] = {layer: {} for layer in space.shapes}
        for layer in space.shapes:
            for support in SUPPORTS:
                if len(offered := space.choices(layer, support)) > 1:
                    chosen[layer][support] = offered[rng.randrange(len(offered))]
        drawn.append(Subnet({layer: LayerForms(**paths) for layer, paths in chosen.items()}))
    sizes = [subnet.n_parameters(space.shapes) for subnet in drawn]
    assert fitness.asked == [s for s, size in zip(drawn, sizes, strict=True) if size <= limit][:12]
    assert max(sizes[:20]) > limit


@pytest.mark.parametrize(("least", "most"), [(0, 140), (500, None), (300, 320)])
def test_a_given_subnet_is_brought_within_the_limits_and_left_alone_if_it_keeps_them(
    least: int, most: int | None
) -> None:
    space = make_space()
    config = SearchConfig(
        population=4,
        generations=0,
        mutations=2,
        crossovers=2,
        min_parameters=least,
        max_parameters=most,
    )
    for given in (space.smallest(), space.largest()):
        for seed in range(20):
            fitness = Counted(always(0.0))
            evolve(SubnetGenes(space), whole(fitness), config, random.Random(seed), first=[given])
            size = fitness.asked[0].n_parameters(space.shapes)
            assert least <= size <= (most or size)
            before = given.n_parameters(space.shapes)
            if least <= before <= (most or before):
                assert fitness.asked[0] == given


@pytest.mark.parametrize(("least", "most", "sizes"), [(1, 4, {1, 2}), (0, 6, {5, 6})])
def test_a_repair_stops_as_soon_as_the_limits_are_kept(
    least: int, most: int, sizes: set[int]
) -> None:
    shape = LayerShape(kind="affine", d_out=5, d_in=1, bias=False)
    space = SearchSpace({"norm": shape}, (1,))
    config = SearchConfig(
        population=1,
        generations=0,
        mutations=0,
        crossovers=1,
        min_parameters=least,
        max_parameters=most,
    )
    found = set()
    for seed in range(40):
        fitness = Counted(always(0.0))
        evolve(
            SubnetGenes(space), whole(fitness), config, random.Random(seed), first=[space.largest()]
        )
        found.add(fitness.asked[0].n_parameters(space.shapes))
    assert found == sizes


def test_a_repair_shrinks_no_support_into_a_larger_one() -> None:
    space = make_space()
    shapes, rng = space.shapes, random.Random(3)
    for seed in range(20):
        given = space.draw(rng)
        most = given.n_parameters(shapes) // 4
        fitness = Counted(always(0.0))
        config = SearchConfig(
            population=1, generations=0, mutations=0, crossovers=1, max_parameters=most
        )
        evolve(SubnetGenes(space), whole(fitness), config, random.Random(seed), first=[given])
        for layer, paths in fitness.asked[0].items():
            for support, path in paths.items():
                offered = space.choices(layer, support)
                assert offered.index(path) >= offered.index(given[layer][support])


def test_one_size_alone_is_reached_by_growing_up_to_the_limit() -> None:
    space = make_space()
    config = SearchConfig(
        population=1,
        generations=0,
        mutations=0,
        crossovers=1,
        min_parameters=137,
        max_parameters=137,
    )
    for seed in range(20):
        first = [space.smallest()]
        result = evolve(
            SubnetGenes(space), whole(always(0.0)), config, random.Random(seed), first=first
        )
        assert result.best.n_parameters == 137


def test_a_support_with_two_choices_is_searched_too() -> None:
    shape = LayerShape(kind="linear", d_out=5, d_in=4, bias=True)
    space = SearchSpace({"fc": shape}, ())  # C is a vector or none
    config = SearchConfig(population=1000, generations=0, mutations=0, crossovers=1)
    assert (
        evolve(SubnetGenes(space), whole(always(0.0)), config, random.Random(0)).n_evaluated
        == 3 * 3 * 2 * 3 * 3
    )


def test_at_limit_zero_the_only_subnet_is_scored_once() -> None:
    space = make_space()
    fitness = Counted(always(0.0))
    result = evolve(
        SubnetGenes(space), whole(fitness), SearchConfig(max_parameters=0), random.Random(0)
    )
    assert fitness.asked == [space.smallest()]
    assert result.best == Scored(space.smallest(), 0.0, 0)
    assert result.best_fitness == (0.0,)


def test_where_the_least_is_the_most_only_the_largest_subnet_is_scored() -> None:
    space = make_space()
    largest = space.largest().n_parameters(space.shapes)
    fitness = Counted(always(0.0))
    evolve(
        SubnetGenes(space), whole(fitness), SearchConfig(min_parameters=largest), random.Random(0)
    )
    assert fitness.asked == [space.largest()]


def test_a_space_smaller_than_the_population_is_scored_whole() -> None:
    shape = LayerShape(kind="affine", d_out=3, d_in=1, bias=False)
    space = SearchSpace({"norm": shape}, (2,))
    fitness = Counted(always(0.0))
    result = evolve(SubnetGenes(space), whole(fitness), SearchConfig(), random.Random(0))
    assert result.n_evaluated == 9
    assert {str(s["norm"].A) + str(s["norm"].B) for s in fitness.asked} == {
        a + b for a in ("vector", "scalar", "none") for b in ("vector", "scalar", "none")
    }


def test_both_limits_are_kept_where_few_random_subnets_lie() -> None:
    space = make_space()
    largest = space.largest().n_parameters(space.shapes)
    fitness = Counted(always(0.0))
    config = SearchConfig(
        population=8,
        generations=2,
        mutations=4,
        crossovers=4,
        min_parameters=largest - 40,
        max_parameters=largest - 20,
    )
    result = evolve(SubnetGenes(space), whole(fitness), config, random.Random(0))
    counts = [subnet.n_parameters(space.shapes) for subnet in fitness.asked]
    assert result.n_evaluated >= 8
    assert largest - 40 <= min(counts)
    assert max(counts) <= largest - 20


def test_limits_that_no_subnet_keeps_are_refused() -> None:
    space = make_space()
    largest = space.largest().n_parameters(space.shapes)
    rule = f"min_parameters must be at most {largest}, the largest subnet, got {largest + 1}"
    with pytest.raises(ValueError, match=f"^search: {rule}$"):
        evolve(
            SubnetGenes(space),
            whole(always(0.0)),
            SearchConfig(min_parameters=largest + 1),
            random.Random(0),
        )
    shape = LayerShape(kind="affine", d_out=5, d_in=1, bias=False)
    gap = SearchConfig(min_parameters=3, max_parameters=4)  # there are 0, 1, 2, 5, 6 and 10
    with pytest.raises(
        ValueError, match=r"^search: found no subnet with 3 to 4 parameters\. Widen"
    ):
        evolve(
            SubnetGenes(SearchSpace({"norm": shape}, (1,))),
            whole(always(0.0)),
            gap,
            random.Random(0),
        )


def test_the_same_seed_gives_the_same_search_and_another_seed_another() -> None:
    space = make_space()
    wanted = space.draw(random.Random(9))

    def asked(seed: int) -> list[Subnet]:
        fitness = Counted(agreement(wanted))
        evolve(SubnetGenes(space), whole(fitness), SMALL, random.Random(seed))
        return fitness.asked

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_given_subnets_are_scored_first_and_repaired_if_they_break_the_limit() -> None:
    space = make_space()
    free, tight = Counted(always(0.0)), Counted(always(0.0))
    evolve(
        SubnetGenes(space),
        whole(free),
        SMALL,
        random.Random(0),
        first=[space.largest(), space.smallest()],
    )
    assert free.asked[:2] == [space.largest(), space.smallest()]
    config = SearchConfig(
        population=4, generations=0, mutations=2, crossovers=2, max_parameters=120
    )
    evolve(SubnetGenes(space), whole(tight), config, random.Random(0), first=[space.largest()])
    repaired = tight.asked[0]
    assert 60 <= repaired.n_parameters(space.shapes) <= 120
    kept = [path != NONE for paths in repaired.values() for _, path in paths.items()]
    assert any(kept)


def test_mutants_keep_about_the_share_of_genes_that_is_not_redrawn() -> None:
    space = make_space(40, ranks=(3,))
    config = SearchConfig(population=40, generations=1, top_k=1, mutations=40, crossovers=0)
    fitness = Counted(lambda subnet: float(len(fitness.asked) == 1))
    evolve(SubnetGenes(space), whole(fitness), config, random.Random(0), first=[space.largest()])
    free = [
        (layer, support)
        for layer in space.shapes
        for support, _ in space.largest()[layer].items()
        if len(space.choices(layer, support)) > 1
    ]
    same = [
        subnet[layer][support] == space.largest()[layer][support]
        for subnet in fitness.asked[40:]
        for layer, support in free
    ]
    redrawn_to_itself = sum(1 / len(space.choices(*gene)) for gene in free) / len(free)
    assert sum(same) / len(same) == pytest.approx(0.8 + 0.2 * redrawn_to_itself, abs=0.02)


def test_crossovers_take_every_gene_from_one_of_the_parents() -> None:
    space = make_space()
    first, second = space.largest(), space.smallest()
    config = SearchConfig(population=10, generations=1, top_k=2, mutations=0, crossovers=10)
    fitness = Counted(lambda subnet: float(subnet in (first, second)))
    evolve(SubnetGenes(space), whole(fitness), config, random.Random(0), first=[first, second])
    allowed: set[Form] = {Form("lora", 3), VECTOR, NONE}
    for subnet in fitness.asked[10:]:
        for layer, paths in subnet.items():
            for support, path in paths.items():
                assert path in {first[layer][support], second[layer][support]} <= allowed


def test_progress_is_reported_after_each_evaluation_with_the_best_so_far() -> None:
    space = make_space()
    seen: list[tuple[int, float]] = []
    result = evolve(
        SubnetGenes(space),
        whole(agreement(space.largest())),
        SMALL,
        random.Random(0),
        report=lambda n, best: seen.append((n, best.fitness)),
    )
    assert [n for n, _ in seen] == list(range(1, result.n_evaluated + 1))
    assert [best for _, best in seen] == sorted(best for _, best in seen)
    assert seen[-1][1] == result.best.fitness
