"""How versions are named to clients of the protocol, which expect digits.

The store's ``v3`` is ``3`` to a client; a request may say either. A version of any other name
keeps it. Where a task has both ``3`` and ``v3``, each keeps its own name.
"""

from __future__ import annotations

import re
from typing import Literal

from glora_deploy.store.manifest_fields import slug_problem

from ..errors import InputError, UnknownTaskError
from ..tasks.contract import ServedVersion, TaskEngine

_COUNTED = re.compile(r"v([1-9][0-9]*)")
_DIGITS = re.compile(r"[1-9][0-9]*")


def find_version(engine: TaskEngine, task: str, version: str = "") -> ServedVersion:
    """The version that a client means.

    Args:
        engine: Knows the tasks.
        task: As the client names it.
        version: As the client names it; empty for the current one.

    Raises:
        InputError: If either is no name at all.
        UnknownTaskError: If there is none of this name.
    """
    require_name("task", task)
    if not version:
        return engine.describe(task)
    require_name("version", version)
    try:
        return engine.describe(task, version)
    except UnknownTaskError:
        if not _DIGITS.fullmatch(version):
            raise
        return engine.describe(task, f"v{version}")


def client_name(engine: TaskEngine, task: str, version: str) -> str:
    """The name of a stored version as clients are told it: ``3`` for ``v3``."""
    match = _COUNTED.fullmatch(version)
    if match is None:
        return version
    digits = match[1]
    try:
        engine.describe(task, digits)
    except UnknownTaskError:
        return digits
    return version


def stored_name(engine: TaskEngine, task: str, version: str) -> str:
    """The name in the store of a version that may not be served yet, such as one to load.

    Raises:
        InputError: If it is no name at all.
    """
    require_name("version", version)
    try:
        return find_version(engine, task, version).version
    except UnknownTaskError:
        return f"v{version}" if _DIGITS.fullmatch(version) else version


def require_name(kind: Literal["task", "version"], name: str) -> None:
    """Raise unless a text can name a task or version: nothing else reaches the engine.

    Raises:
        InputError: If it cannot; states the rule.
    """
    if problem := slug_problem(kind, name):
        raise InputError(f"{kind} {problem}")
