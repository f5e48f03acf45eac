"""``python -m glora_deploy.serving.scale_out``: Ctrl-C is one line from the start."""

from __future__ import annotations

from collections.abc import Callable

from glora_deploy.interrupt import run_program


def main() -> None:
    """Entry point."""
    run_program(_load)


def _load() -> Callable[[], None]:
    from .cli import main

    return main


if __name__ == "__main__":
    main()
