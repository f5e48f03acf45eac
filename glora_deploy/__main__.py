"""``python -m glora_deploy``, and the script: Ctrl-C is one line from the start."""

from __future__ import annotations

from collections.abc import Callable

from .interrupt import run_program


def main() -> None:
    """Entry point of ``glora``."""
    run_program(_load)


def _load() -> Callable[[], None]:
    from .commands.main import main

    return main


if __name__ == "__main__":
    main()
