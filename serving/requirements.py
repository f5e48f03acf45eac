"""``python -m glora_deploy.serving.requirements``: what a server without torch needs installed.

Printed from the installed package's own metadata, so that ``pyproject.toml`` is the one place where
it stands: the extra ``serve`` is whole in itself, and the runtime is an extra of its own::

    pip install --no-deps glora-deploy
    python -m glora_deploy.serving.requirements cpu > requirements.txt
    pip install -r requirements.txt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import requires

_EXTRA = re.compile(r"""\s*(?:\band\b)?\s*extra\s*==\s*['"]([\w-]+)['"]\s*""")


def of_extras(requirements: Iterable[str], extras: Iterable[str]) -> list[str]:
    """Those of some extras, without what says that they are.

    >>> of_extras(["a>=1", "b>=2; extra == 'x'", "c; sys_platform != 'y' and extra == 'z'"], "xz")
    ['b>=2', "c; sys_platform != 'y'"]

    Args:
        requirements: As a package's metadata states them.
        extras: Their names.
    """
    wanted = set(extras)
    found = []
    for line in requirements:
        match = _EXTRA.search(line)
        if match and match[1] in wanted:
            found.append(_EXTRA.sub("", line).rstrip(" ;"))
    return sorted(set(found))


def main() -> None:
    """Print the requirements of ``serve`` and of the extras that are named."""
    lines = of_extras(requires("glora-deploy") or [], ["serve", *sys.argv[1:]])
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
