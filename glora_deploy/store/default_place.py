"""Which store is meant where none is named; imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_STORE = Path("artifacts")
"""In the working folder."""
STORE_VARIABLE = "GLORA_STORE"
"""Environment variable that names another one."""


def default_store() -> Path:
    """The store that a command means without ``--store``."""
    return Path(os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)
