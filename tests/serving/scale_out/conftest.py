"""Ray is imported once here: its own deprecated calls warn, and warnings are errors."""

from __future__ import annotations

import warnings
from contextlib import suppress

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with suppress(ModuleNotFoundError):
        import ray.serve  # noqa: F401
