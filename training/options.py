"""How the options of ``glora-train`` are read, and what is wrong with one told under its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import typer

from glora_deploy.console import one_line, wrong_usage_of

from .setting_error import SettingError

_OPTIONS = {"kinds": "--layers", "weights": "--checkpoint"}
"""Options of settings that are called otherwise."""

T = TypeVar("T")


@contextmanager
def wrong_settings() -> Iterator[None]:
    """Turn a setting that cannot be meant into wrong usage of its option, exit status 2."""
    try:
        yield
    except SettingError as error:
        said = one_line(error).removeprefix(f"{' and '.join(error.settings)}: ")
        for name in error.settings:
            if _option(name) != f"--{name}":  # a name that the user never gave
                said = re.sub(rf"\b{name}(?= must )", _option(name), said)
        hint = " / ".join(map(_option, error.settings))
        raise typer.BadParameter(said, param_hint=hint) from error


def _option(setting: str) -> str:
    return _OPTIONS.get(setting, f"--{setting.replace('_', '-')}")


def choice(choices: Any, help: str, rich_help_panel: str, metavar: str = "") -> Any:
    """An option that takes one word of a Literal or tuple, and refuses others as all options do."""
    words = choices if isinstance(choices, tuple) else get_args(choices)

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"must be one of {', '.join(words)}, got {text!r}")
        return text

    metavar = metavar or f"[{'|'.join(words)}]"
    return typer.Option(parser=parse, metavar=metavar, help=help, rich_help_panel=rich_help_panel)


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


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read numbers such as 8,4.

    >>> parse_numbers("8,4")
    (8, 4)

    Raises:
        ValueError: If the text is no such list.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"must be numbers such as 8,4, got {text!r}") from None
