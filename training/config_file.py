"""``glora train --config``: a TOML file of options, for what the command line leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from glora_deploy.console import one_line, wrong_usage_of
from glora_deploy.store.run_settings import read_settings

_NOT_IN_A_FILE = {"config", "quiet"}
_LISTS = {"ranks": int, "layers": str, "input_size": int}
"""Options of one text that a file may give as a list of these, too."""
_NUMBERS = {"max_parameters", "input_size"}
"""Options of one text that a file may give as a whole number, too."""


def take_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file say what the command line does not: the callback of ``--config``.

    Raises:
        typer.BadParameter: If the file cannot be read, or a key or a value in it cannot be meant;
            names the key.
    """
    if path is None or context.resilient_parsing:
        return path
    with wrong_usage_of("--config"):
        try:
            found = read_settings(path.read_bytes(), str(path))
        except OSError as error:
            raise ValueError(one_line(error)) from error
        context.default_map = _defaults(context, found, path)
    return path


def _defaults(context: typer.Context, found: Mapping[str, object], path: Path) -> dict[str, Any]:
    options = {
        parameter.opts[0].removeprefix("--"): str(parameter.name)
        for parameter in context.command.params
    }
    callback = context.command.callback
    hints = get_type_hints(getattr(callback, "__wrapped__", callback))
    allowed = {key: name for key, name in options.items() if name in hints.keys() - _NOT_IN_A_FILE}
    defaults: dict[str, Any] = {}
    for key, value in found.items():
        name = allowed.get(key.replace("_", "-"))
        if name is None:
            raise ValueError(f"{path}: {key} is no option. There are: {', '.join(sorted(allowed))}")
        if name in defaults:
            raise ValueError(f"{path}: {key} must be given once")
        defaults[name] = _as_on_the_command_line(name, hints[name], value, f"{path}: {key}")
    return defaults


def _as_on_the_command_line(name: str, hint: Any, value: object, where: str) -> Any:
    if isinstance(value, list) and name in _LISTS:
        _require_list(value, _LISTS[name], where)
        sign = "x" if name == "input_size" else ","
        return sign.join(map(str, value))
    if name in _NUMBERS and type(value) is int:
        return str(value)
    kind = _kind(hint)
    if get_origin(kind) is list:
        _require_list(value, str, where)
        return value
    takes = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")
    fits = {
        "true or false": type(value) is bool,
        "a whole number": type(value) is int,
        "a number": type(value) in (int, float) and math.isfinite(float(str(value))),
        "text": type(value) is str,
    }[takes]
    if not fits:
        raise ValueError(f"{where} must be {takes}, got {value!r}")
    return value


def _require_list(value: object, kind: type, where: str) -> None:
    if not isinstance(value, list) or any(type(each) is not kind for each in value):
        what = "numbers" if kind is int else "texts"
        raise ValueError(f"{where} must be a list of {what}, got {value!r}")


def _kind(hint: Any) -> Any:
    """The type of an option, None apart; text for a path and a choice."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    return str if hint is Path or get_origin(hint) is Literal else hint
