"""The command that makes an export which is missing."""

from __future__ import annotations

import shlex

from glora_deploy.precision import Precision
from glora_deploy.store.export_record import Format


def export_command(task: str, written: Format, precision: Precision, *options: str) -> str:
    """A line for a shell.

    >>> export_command("pets", "onnx", "fp16", "--out", "my pets")
    "glora export --task pets --fmt onnx --precision fp16 --out 'my pets'"
    """
    words = ["glora", "export", "--task", task, "--fmt", written]
    if precision != "fp32":
        words += ["--precision", precision]
    return shlex.join([*words, *options])
