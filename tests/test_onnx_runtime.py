"""ONNX Runtime is loaded without its telemetry, by whoever loads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_LOAD = """
import os
{start}
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
_BY = {
    "serving": "from glora_deploy.serving.onnx_session import OnnxSession\n"
    "from pathlib import Path\n"
    "try: OnnxSession(Path('nowhere.onnx'))\n"
    "except Exception: pass",
    "export": "from glora_deploy.export.onnx_model.ort_session import multiplies_exactly\n"
    "multiplies_exactly()",
}


def run(code: str, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ORT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("side", _BY)
def test_neither_side_lets_it_send_anything(side: str) -> None:
    assert run(_LOAD.format(start=_BY[side])) == "1"


def test_who_allowed_it_is_not_overruled() -> None:
    assert run(_LOAD.format(start=_BY["serving"]), ORT_DISABLE_TELEMETRY="0") == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_is_started_to_send_it() -> None:
    code = (
        "import os, numpy\n"
        "from glora_deploy.onnx_runtime import import_onnxruntime\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "import_onnxruntime('this test')\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert run(code) == "0"
