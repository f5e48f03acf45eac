"""What every program and every command answers to: ``-h``, ``--version`` and ``--log-level``.

A command is a function with Typer's annotations; ``examples`` says how it is called. A program of
many commands is a ``Program`` with a table, of which a module is imported only when its command is
called: the help of the program, and completion, need none of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from .interrupt import leaving_at_once

log = logging.getLogger(__name__)

LogLevel = Literal["debug", "info", "warning", "error"]
HELP_OPTIONS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

_EXAMPLES = "examples"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in the table of a program."""

    module: str
    """Its absolute name."""
    name: str
    """Of the command in it: a function with Typer's annotations, or a ``typer.Typer``."""
    help: str
    """One line, the first of the command's own help."""
    panel: str
    """Under which heading the help of the program shows it."""


def examples(*lines: str) -> Callable[[Function], Function]:
    """Say how a command is called, at the end of its help.

    Args:
        lines: What follows the name of the program and the command; after two spaces and ``#``
            a word on it.
    """

    def remember(function: Function) -> Function:
        function.__dict__[_EXAMPLES] = lines
        return function

    return remember


class _Answering:
    """The options that every command has, and its examples; mixed into Typer's two classes."""

    params: list[Any]
    callback: Callable[..., Any] | None
    epilog: str | None

    def _add_shared_options(self) -> None:
        taken = {option for parameter in self.params for option in parameter.opts}
        self.params += [each for each in _shared_options() if not taken & {*each.opts}]

    def _add_examples(self, program: str) -> None:
        lines = getattr(self.callback, "__dict__", {}).get(_EXAMPLES, ())
        if lines:
            self.epilog = "\n\n".join(["**Examples**", *(_example(program, x) for x in lines)])


def _example(program: str, line: str) -> str:
    call, _, note = line.partition("  # ")
    return f"`{program} {call}`".replace(" `", "`") + (f" # {note}" if note else "")


class Command(_Answering, TyperCommand):
    """One command."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._add_shared_options()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; alone, ``--version`` asks for the release also where it takes a value."""
        if args == ["--version"]:
            _show_version(True)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with examples as this command was called."""
        self._add_examples(ctx.command_path)
        super().format_help(ctx, formatter)


class Program(_Answering, TyperGroup):
    """Several commands; those of the table are imported when they are called."""

    table: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._add_shared_options()
        for name, entry in self.table.items():
            self.commands[name] = TyperCommand(
                name, help=entry.help, rich_help_panel=entry.panel, rich_markup_mode="markdown"
            )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; alone, ``--version`` asks for the release also where it takes a value."""
        if args == ["--version"]:
            _show_version(True)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with examples as this program was called."""
        self._add_examples(ctx.command_path)
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is called, imported now if the table names it."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.table:
            return name, load_command(name, self.table[name]), rest
        return name, command, rest


def load_command(name: str, entry: Entry) -> Any:
    """The command of an entry, ready to be called under a name."""
    with leaving_at_once():
        found = getattr(import_module(entry.module), entry.name)
    log.debug("%s is %s.%s", name, entry.module, entry.name)
    command = typer.main.get_command(found if isinstance(found, typer.Typer) else app_of(found))
    command.name = name
    return command


def app_of(function: Callable[..., Any]) -> typer.Typer:
    """The program of one command."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings=HELP_OPTIONS,
    )
    app.command(cls=Command)(function)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from . import __version__

        typer.echo(f"glora-deploy {__version__}")
        raise typer.Exit


def _set_log_level(level: LogLevel | None) -> None:
    if level is None:
        return
    number: int = getattr(logging, level.upper())
    # What libraries have to say for those who debug them would bury what we have to say.
    logging.basicConfig(
        stream=sys.stderr,
        level=max(number, logging.INFO),
        format="%(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger(__package__).setLevel(number)


def _shared_options() -> list[Any]:
    """New parameters, of the kind that this release of Typer makes."""

    def shared(
        log_level: Annotated[
            LogLevel | None,
            typer.Option(
                callback=_set_log_level,
                expose_value=False,
                is_eager=True,
                metavar="LEVEL",
                show_default="warning",
                help="debug, info, warning or error: what to log on stderr. Of libraries, debug "
                "logs no more than info.",
            ),
        ] = None,
        release: Annotated[
            bool,
            typer.Option(
                "--version",
                callback=_show_version,
                expose_value=False,
                is_eager=True,
                help="Show the release and exit.",
            ),
        ] = False,
    ) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command()(shared)
    return list(typer.main.get_command(app).params)
