"""``run.toml``: what a training was asked for, as ``glora train --config`` takes it again.

Flat TOML: the options of ``glora train`` without their dashes, each text, a number, true or false,
or a list of these. Imports nothing heavy.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath

from ..errors import ArtifactError
from .redact import data_kind

Value = str | int | float | bool | Sequence[str] | Sequence[int]
HEADER = "# glora train --config THIS-FILE repeats this training as a new version.\n"


def write_settings(settings: Mapping[str, Value]) -> bytes:
    """The bytes of a run.toml; the same settings always give the same bytes.

    >>> write_settings({"task": "digits", "lr": 0.01, "ranks": [8, 4]}).decode().splitlines()[1:]
    ['task = "digits"', 'lr = 0.01', 'ranks = [8, 4]']
    """
    lines = [f"{name} = {_toml(value)}\n" for name, value in settings.items()]
    return (HEADER + "".join(lines)).encode()


def read_settings(data: bytes, where: str) -> dict[str, object]:
    """What a run.toml, or one that a user wrote, says; whether it can be meant is not checked.

    Raises:
        ArtifactError: If it is no TOML in UTF-8.
    """
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:  # of both
        raise ArtifactError(f"{where}: must be TOML: {error}") from error


def shared_settings(data: bytes) -> bytes:
    """A run.toml as others may see it: of places on this machine only what kind they are of.

    What it says of the data then is to be given again: ``--config run.toml --data folder:PATH``.
    """
    settings = _ours(data)
    if isinstance(spec := settings.get("data"), str) and (kind := data_kind(spec)) != spec:
        settings |= {"data": kind}
        settings.pop("split", None)
    if isinstance(weights := settings.get("checkpoint"), str) and not weights.startswith("random:"):
        settings |= {"checkpoint": PureWindowsPath(weights).name or "unnamed"}
    return write_settings(settings)


def renamed_settings(data: bytes, task: str) -> bytes:
    """A run.toml for the same training of a task by another name."""
    return write_settings({**_ours(data), "task": task})


def _ours(data: bytes) -> dict[str, Value]:
    return {
        name: value
        for name, value in read_settings(data, "run.toml").items()
        if isinstance(value, str | int | float | bool | list)
    }


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Both escape alike but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(map(_toml, value))}]"
