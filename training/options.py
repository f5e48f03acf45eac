"""What the options of ``glora-train`` mean: checked settings, and wrong usage refused by option."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, get_args

import typer

from glora_deploy.console import one_line, wrong_usage_of
from glora_deploy.data.built_in_tasks import BUILT_IN_TASKS
from glora_deploy.data.spec import with_splits
from glora_deploy.glora.forms import LayerKind

from .config import DEMO_LR, Method, Schedule, SearchConfig, SettingError, TrainConfig

_OPTIONS = {"kinds": "--layers", "weights": "--checkpoint"}
"""Options of settings that are called otherwise."""

T = TypeVar("T")


@contextmanager
def wrong_settings() -> Iterator[None]:
    """Turn a setting that cannot be meant into wrong usage of its option, exit status 2."""
    try:
        yield
    except SettingError as error:
        said = one_line(error)
        for name in error.settings:
            if _option(name) != f"--{name}":  # a name that the user never gave
                said = re.sub(rf"\b{name}(?= must )", _option(name), said)
        hint = " / ".join(map(_option, error.settings))
        raise typer.BadParameter(said, param_hint=hint) from error


def _option(setting: str) -> str:
    return _OPTIONS.get(setting, f"--{setting.replace('_', '-')}")


def choice(choices: Any, help: str) -> Any:
    """An option that takes one of the words of a Literal, and refuses others as all options do."""
    words = get_args(choices)

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"must be one of {', '.join(words)}, got {text!r}")
        return text

    return typer.Option(parser=parse, metavar=f"[{'|'.join(words)}]", help=help)


def require_data(task: str, data: str | None, backbone: str | None) -> None:
    """Refuse a task without images, and images of one's own on a backbone that nobody chose."""
    if data is None and task in BUILT_IN_TASKS:
        return
    if ":" not in (data or task) and data not in BUILT_IN_TASKS:
        raise typer.BadParameter(
            f"a task must be one of {', '.join(BUILT_IN_TASKS)}, or its images be given as "
            f"folder:PATH, lists:PATH or vtab:PATH, got {data or task!r}",
            param_hint="--data",
        )
    if backbone is None and data not in BUILT_IN_TASKS:
        raise typer.BadParameter(
            "your own images need one. To start with: vit_small_patch14_dinov2.lvd142m or "
            "vit_base_patch16_224.orig_in21k; for a trial that downloads nothing: demo-vit, a toy "
            "of 32x32 pixels",
            param_hint="--backbone",
        )


def require_effect(
    method: Method, kinds: tuple[LayerKind, ...], ranks: str | None, searching: dict[str, Any]
) -> None:
    """Refuse options that would be ignored."""
    if method == "lora" and (given := _given(searching)):
        options = " / ".join(f"--{name.replace('_', '-')}" for name in given)
        raise typer.BadParameter(
            "has no effect with --method lora, which searches nothing", param_hint=options
        )
    if ranks is not None and set(kinds) == {"affine"}:
        raise typer.BadParameter(
            "has no effect with --layers affine, which have no lora paths", param_hint="--ranks"
        )


def data_spec(spec: str, split: str | None) -> str:
    """Where the images are, with the user's own splits if there are any.

    Raises:
        typer.BadParameter: If the splits cannot be read.
    """
    if split is None:
        return spec
    with wrong_usage_of("--split"):
        return with_splits(spec, split)


def train_config(
    schedule: Schedule,
    method: Method,
    kinds: tuple[LayerKind, ...],
    *,
    demo: bool,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    drop_path: float | None,
    ranks: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
) -> TrainConfig:
    """The schedule's training with what the user gave in its place.

    Args:
        schedule: Which preset.
        method: ``lora`` has one rank, by default the schedule's largest.
        kinds: Of layers to adapt.
        demo: Whether the backbone is demo-vit, which has a learning rate of its own.
        epochs: This and the following as their options; None is the schedule's.
        batch_size: Images per step.
        lr: Peak learning rate.
        drop_path: Of the deepest block.
        ranks: Such as ``8,4``.
        include: Patterns of layers to adapt.
        exclude: Patterns of layers to leave alone.

    Raises:
        typer.BadParameter: If the ranks are no numbers.
        SettingError: If a setting cannot be meant.
    """
    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": DEMO_LR if lr is None and demo and schedule == "short" else lr,
        "drop_path": drop_path,
        "ranks": parsed("--ranks", _numbers, ranks),
        "include": tuple(include) if include else None,
        "exclude": tuple(exclude) if exclude else None,
    }
    training = TrainConfig.preset(schedule, kinds=kinds, **_given(changes))
    if method == "lora" and ranks is None:
        training = replace(training, ranks=(max(training.ranks),))
    return training


def search_config(schedule: Schedule, searching: dict[str, Any]) -> SearchConfig:
    """The schedule's search with what the user gave in its place; None is the schedule's.

    Raises:
        SettingError: If a setting cannot be meant.
    """
    return SearchConfig.preset(schedule, **_given(searching))


def parsed(option: str, parse: Callable[[str], T], text: str | None) -> T | None:
    """What an option's text says; None if it is not given.

    Raises:
        typer.BadParameter: If the text cannot be read.
    """
    if text is None:
        return None
    with wrong_usage_of(option):
        return parse(text)


def parse_count(text: str) -> int:
    """Read a count such as 150000, 150k or 0.5M.

    >>> parse_count("0.5M")
    500000

    Raises:
        ValueError: If the text is no such count.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", text.replace("_", ""))
    if match is None:
        raise ValueError(f"a count must look like 150000, 150k or 0.5M, got {text!r}")
    return round(float(match[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[match[2]])


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"must be numbers such as 8,4, got {text!r}") from None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
