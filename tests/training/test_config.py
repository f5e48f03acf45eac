from __future__ import annotations

from typing import Any

import pytest

from glora_deploy.training.config import RunConfig, Schedule, SearchConfig, TrainConfig
from glora_deploy.training.schedule import learning_rate
from glora_deploy.training.setting_error import SettingError


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
        ({"ranks": (4, 4)}, "ranks must be .*, got 4, 4"),
        ({"ranks": (0,)}, "ranks must be .*, got 0$"),
        ({"ranks": (100_000,)}, "ranks must be at most 99999, got 100000"),
        ({"kinds": ("conv", "conv")}, "kinds must name each kind once"),
        (
            {"kinds": ("linear", "attention")},
            "of linear, conv, affine, got linear, attention$",
        ),
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
    with pytest.raises(ValueError, match="schedule must be one of short, paper, got 'x'"):
        TrainConfig.preset("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule must be one of"):
        SearchConfig.preset("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"method must be one of .*glora, .*lora, .*got 'dora'"):
        make_run(method="dora")


LORA = {"method": "lora", "search": None}


@pytest.mark.parametrize(
    ("changes", "blamed", "message"),
    [
        (
            {"compare_lora": True},
            "compare_lora",
            "compare_lora must go with --method glora, noah, got lora",
        ),
        ({"retrain": True}, "retrain", "retrain must go with --method glora, noah, got lora"),
        ({"train": {"ranks": (8, 4)}}, "ranks", "be one for --method lora, got 8, 4"),
        ({"train": {"kinds": ("conv", "affine")}}, "kinds", "kinds must be of linear, conv for"),
        (
            {"search": SearchConfig()},
            "search",
            "search must be given for method glora, noah, and for it",
        ),
        ({"train": {"scale": 2.0}}, "scale", "scale must be left out for --method lora, got 2.0"),
    ],
)
def test_options_that_contradict_lora_are_refused(
    changes: dict[str, Any], blamed: str, message: str
) -> None:
    train = TrainConfig.preset("short", **{"ranks": (8,), **changes.pop("train", {})})
    with pytest.raises(SettingError, match=message) as caught:
        make_run(**{**LORA, "train": train, **changes})
    assert caught.value.settings == (blamed,)


@pytest.mark.parametrize(
    ("changes", "blamed", "message"),
    [
        ({"seed": -1}, ("seed",), "seed must be in"),
        ({"search": None}, ("search",), "search must be given for method glora"),
        ({"task": "../evil"}, ("task",), "task must be 1 to 64 of"),
        ({"version": "current"}, ("version",), "version must not be the reserved word 'current'"),
        ({"resume": True, "restart": True}, ("resume", "restart"), "gone on with or discarded"),
    ],
)
def test_a_request_that_cannot_be_meant_names_the_settings_to_blame(
    changes: dict[str, Any], blamed: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        make_run(**changes)
    assert caught.value.settings == blamed


def test_lora_takes_the_largest_rank_and_the_kinds_that_have_one() -> None:
    train = TrainConfig.preset("short", ranks=(2, 6, 4), kinds=("affine", "conv", "linear"))
    lora = train.for_lora()
    assert (lora.ranks, lora.kinds) == ((6,), ("conv", "linear"))
    assert lora.for_lora() == lora
    with pytest.raises(SettingError, match="LoRA needs a linear or conv layer, got affine"):
        TrainConfig.preset("short", kinds=("affine",)).for_lora()


@pytest.mark.parametrize("lr", [1e-3, 1e-5, 1e-8])
def test_no_epoch_has_a_higher_learning_rate_than_the_peak(lr: float) -> None:
    for schedule in ("short", "paper"):
        config = TrainConfig.preset(schedule, lr=lr)  # type: ignore[arg-type]
        rates = [learning_rate(config, epoch) for epoch in range(config.epochs)]
        assert max(rates) <= lr


def make_run(**changes: Any) -> RunConfig:
    train, search = TrainConfig.preset("short"), SearchConfig.preset("short")
    values = {"task": "digits", "data": "digits", "train": train, "search": search}
    return RunConfig(**{**values, **changes})


def test_the_paper_searches_after_all_epochs_and_short_before_the_last() -> None:
    assert TrainConfig.preset("paper").supernet_epochs == 500
    assert TrainConfig.preset("short", epochs=10, supernet_share=0.6).supernet_epochs == 6
    assert TrainConfig.preset("short", epochs=1, warmup_epochs=0).supernet_epochs == 1
