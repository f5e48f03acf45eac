"""What the command line of an export refuses as wrong usage, before anything is read or made."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def require_none_given(context: typer.Context, command: str) -> None:
    """Refuse options between the program and a subcommand, which takes its own after its name.

    Raises:
        typer.BadParameter: If there is one; names them all.
    """
    given = given_options(context, context.params)
    if given:
        raise typer.BadParameter(
            f"must come after the subcommand, as in {command} {given[0]}", context, param_hint=given
        )


def given_options(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of these parameters that stand on the command line, as options such as ``--fmt``.

    A value from the environment does not count: whoever sets HF_TOKEN asks for nothing.
    """
    spelled = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [spelled[name] for name in names if _is_given(context, name)]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    # By name: typer brings its own copy of click, older releases of it used click itself.
    return source is not None and source.name == "COMMANDLINE"
