"""What a program imports: ``glora_deploy.__version__`` and what each side exports, lazily."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import glora_deploy

HEAVY = {"numpy", "onnx", "onnxruntime", "pydantic", "rich", "timm", "torch", "typer"}


def modules_after(code: str) -> set[str]:
    """The modules that a new interpreter has once it ran this code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_version_is_the_one_that_pyproject_states() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    assert glora_deploy.__version__ == project["project"]["version"]


def test_a_misspelt_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'__versoin__'"):
        glora_deploy.__versoin__  # noqa: B018


@pytest.mark.parametrize("package", ["glora_deploy", "glora_deploy.serving"])
def test_importing_a_package_brings_nothing_heavy(package: str) -> None:
    assert modules_after(f"import {package}") & HEAVY == set()


def test_the_version_brings_nothing_heavy() -> None:
    assert modules_after("import glora_deploy; glora_deploy.__version__") & HEAVY == set()
