from __future__ import annotations

from typing import Any

import pytest

from glora_deploy.training.config import RunConfig, Schedule, SearchConfig, TrainConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be finite and above 0"),
        ({"lr": float("nan")}, "lr must be finite and above 0, got nan"),
        ({"lr": float("inf")}, "lr must be finite and above 0, got inf"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"ranks": ()}, "ranks must be one or more distinct numbers of at least 1"),
        ({"ranks": (4, 4)}, r"ranks must be .*, got \(4, 4\)"),
        ({"ranks": (0,)}, "ranks must be"),
        ({"kinds": ("linear", "attention")}, "kinds must be one or more of"),
        ({"epochs": 1, "warmup_epochs": 1}, "warmup_epochs must be below epochs=1, got 1"),
        ({"supernet_share": 0.0}, "supernet_share must be above 0 and at most 1, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and at least 0"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.preset("short", **change)


@pytest.mark.parametrize(
    ("schedule", "epochs", "warmup"),
    [("short", 15, 1), ("short", 2, 1), ("short", 1, 0), ("paper", 11, 10), ("paper", 10, 9)],
)
def test_the_warm_up_of_a_schedule_ends_before_the_epochs_asked_for(
    schedule: Schedule, epochs: int, warmup: int
) -> None:
    assert TrainConfig.preset(schedule, epochs=epochs).warmup_epochs == warmup


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 0}, "population must be at least 1"),
        ({"generations": -1}, "generations must be at least 0"),
        ({"max_parameters": -1}, "max_parameters must be at least min_parameters=0, got -1"),
        ({"min_parameters": 9, "max_parameters": 8}, "max_parameters must be at least"),
        ({"mutations": 30}, r"mutations \+ crossovers must be at most population=50, got 55"),
        ({"mutation_probability": 1.5}, r"mutation_probability must be in \[0, 1\]"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**change)


def test_the_defaults_of_the_search_are_the_authors() -> None:
    paper = SearchConfig.preset("paper")
    assert paper == SearchConfig()
    assert (paper.population, paper.generations, paper.top_k) == (50, 20, 10)
    assert (paper.mutations, paper.crossovers, paper.mutation_probability) == (25, 25, 0.2)


@pytest.mark.parametrize("population", [1, 2, 3, 9])
def test_any_population_makes_a_valid_search(population: int) -> None:
    for schedule in ("paper", "short"):
        config = SearchConfig.preset(schedule, population=population)  # type: ignore[arg-type]
        assert config.population == population


def test_an_unknown_schedule_or_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of \('short', 'paper'\), got 'x'"):
        TrainConfig.preset("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule must be one of"):
        SearchConfig.preset("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"method must be one of \('glora', 'lora'\), got 'dora'"):
        make_run(method="dora")


def test_options_that_contradict_the_method_are_refused() -> None:
    for option in ("compare_lora", "retrain"):
        with pytest.raises(ValueError, match=f"{option} must go with method glora, got lora"):
            make_run(method="lora", **{option: True})
    with pytest.raises(ValueError, match="seed must be in"):
        make_run(seed=-1)


def make_run(**changes: Any) -> RunConfig:
    train, search = TrainConfig.preset("short"), SearchConfig.preset("short")
    return RunConfig(task="digits", data="digits", train=train, search=search, **changes)


def test_the_paper_searches_after_all_epochs_and_short_before_the_last() -> None:
    assert TrainConfig.preset("paper").supernet_epochs == 500
    assert TrainConfig.preset("short", epochs=10, supernet_share=0.6).supernet_epochs == 6
    assert TrainConfig.preset("short", epochs=1, warmup_epochs=0).supernet_epochs == 1
