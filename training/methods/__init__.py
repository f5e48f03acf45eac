"""Every way to train a task, one file each: what is trained, how it folds, how it is counted.

A module of this package that defines a ``Method``, its name without an underscore, has added it to
``--method`` and its help; nothing else names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from ..method import Method


def _found() -> Iterator[Method]:
    for info in iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        for _, each in inspect.getmembers(module, inspect.isclass):
            own = each.__module__ == module.__name__ and not each.__name__.startswith("_")
            if own and issubclass(each, Method):
                yield each()


METHODS: dict[str, Method] = {each.name: each for each in sorted(_found(), key=lambda m: m.name)}
"""By name."""
