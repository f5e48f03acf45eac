"""Options and arguments that commands of several sides take, each declared once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .store.default_place import STORE_VARIABLE, default_store

_IN_TASK = "glora_deploy.version_in_task"


def named(kind: Literal["task", "version"]) -> Callable[[typer.Context, Any], Any]:
    """A check that a value, or each of several, can name a task or version at all.

    A task may bring its version, ``TASK/VERSION``, in commands that take one.
    """

    def check(context: typer.Context, value: Any) -> Any:
        if context.resilient_parsing:
            return value
        if kind == "task" and isinstance(value, str) and "/" in value and _takes_version(context):
            value, _, version = value.partition("/")
            _require_name("version", version)
            if context.params.get("version") is not None:
                raise typer.BadParameter("name the version once")
            context.meta[_IN_TASK] = version
        if kind == "version" and (given := context.meta.pop(_IN_TASK, None)) is not None:
            if value is not None:
                raise typer.BadParameter("name the version once")
            value = given
        for name in value if isinstance(value, list) else [value]:
            if name is not None:
                _require_name(kind, name)
        return value

    return check


def _takes_version(context: typer.Context) -> bool:
    return any(each.name == "version" and each.expose_value for each in context.command.params)


def _require_name(kind: Literal["task", "version"], name: str) -> None:
    from .store.manifest_fields import slug_problem

    if problem := slug_problem(kind, name):
        raise typer.BadParameter(f"{kind} {problem}")


def require_writable_file(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written, before anything is measured for it.

    Raises:
        typer.BadParameter: If its folder is not there, or it or its folder may not be written.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} must be a folder, it is none", param_hint=option)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"{path} must be writable, it is not", param_hint=option)


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """The tasks of the store that is meant, for the shell."""
    return _known(context, lambda store: store.tasks())


def complete_version(context: typer.Context, incomplete: str) -> list[str]:
    """The versions of the task that is named already, for the shell."""
    task = context.params.get("task")
    if isinstance(task, list | tuple):  # an option that may be repeated
        task = task[-1] if task else None
    return _known(context, lambda store: store.version_names(task)) if task else []


def complete_task_or_version(context: typer.Context, incomplete: str) -> list[str]:
    """``TASK``, and ``TASK/VERSION`` once a task is typed, for the shell."""

    def names(store: Any) -> list[str]:
        task, slash, _ = incomplete.partition("/")
        return [f"{task}/{each}" for each in store.version_names(task)] if slash else store.tasks()

    return _known(context, names)


def _known(context: typer.Context, names: Callable[[Any], list[str]]) -> list[str]:
    """Names that a store has; none if it cannot be read: a shell has no use for the reason."""
    from .store.reader import StoreReader

    try:
        return names(StoreReader(context.params.get("store") or default_store()))
    except OSError:
        return []


StoreOption = Annotated[
    Path,
    typer.Option("--store", envvar=STORE_VARIABLE, help="Folder of the artifact store."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no table; errors only.")
]
TaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="Name of a task; TASK/VERSION where a version can be named.",
        autocompletion=complete_task,
        callback=named("task"),
    ),
]
OptionalTaskArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TASK",
        help="Everything by default.",
        autocompletion=complete_task,
        callback=named("task"),
    ),
]
OptionalVersionArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="VERSION",
        help="Version of the task; the current one by default.",
        autocompletion=complete_version,
        callback=named("version"),
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Name of the task.",
        autocompletion=complete_task,
        callback=named("task"),
    ),
]
VersionOption = Annotated[
    str | None,
    typer.Option(
        "--version",
        help="Version of the task; the current one by default.",
        autocompletion=complete_version,
        callback=named("version"),
    ),
]
CurrentOption = Annotated[
    bool,
    typer.Option("--current/--no-current", help="Let the new version be the one that answers."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
