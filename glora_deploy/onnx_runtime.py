"""ONNX Runtime, loaded without its telemetry."""

from __future__ import annotations

import os
from typing import Any

from .errors import MissingDependencyError

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Read when the library is loaded, and never again. Its builds for Linux, from 1.29 on, otherwise
start a thread for it at once."""


def import_onnxruntime(purpose: str) -> Any:
    """The module ``onnxruntime``; sends nothing unless the variable is set to 0 beforehand.

    Args:
        purpose: What it is needed for, at the beginning of the error's text.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "cpu", purpose) from error
    return onnxruntime
