"""The program ``glora``: every command behind one name."""

from __future__ import annotations

import typer

from ..program import HELP_OPTIONS, Program, examples
from .table import COMMANDS


class Glora(Program):
    """The program and its table."""

    table = COMMANDS


app = typer.Typer(
    cls=Glora,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings=HELP_OPTIONS,
)


@app.callback()
@examples(
    "train --task digits",
    "export --task digits --fmt onnx",
    "list",
    "COMMAND --help  # the options of a command, with examples",
)
def glora() -> None:
    """Fine-tune one frozen vision backbone for many tasks, prove what is shipped, and use it."""


def main() -> None:
    """Entry point of ``glora``."""
    app(prog_name="glora")
