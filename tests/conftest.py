"""What every test process needs before anything is imported."""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    # Triton reads it when a kernel is defined, and collecting doctests imports every module.
    os.environ.setdefault("TRITON_INTERPRET", "1")
