"""What a program imports: ``glora_deploy.__version__`` and what each side exports, lazily."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
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


@pytest.mark.parametrize(
    "package",
    [
        "glora_deploy",
        "glora_deploy.evaluation",
        "glora_deploy.export",
        "glora_deploy.serving",
        "glora_deploy.training",
    ],
)
def test_importing_a_package_brings_nothing_heavy(package: str) -> None:
    assert modules_after(f"import {package}") & HEAVY == set()


def test_the_version_brings_nothing_heavy() -> None:
    assert modules_after("import glora_deploy; glora_deploy.__version__") & HEAVY == set()


@pytest.mark.parametrize(
    ("line", "absent"),
    [
        ("from glora_deploy.training import train", {"torch", "timm"}),
        (
            "from glora_deploy.evaluation import compare, evaluate",
            {"torch", "timm", "onnx", "onnxruntime"},
        ),
        ("from glora_deploy.export import export", {"torch", "timm", "onnx"}),
        ("from glora_deploy.serving import Predictor", {"torch", "timm", "onnx", "onnxruntime"}),
    ],
)
def test_importing_a_function_brings_nothing_that_only_its_call_needs(
    line: str, absent: set[str]
) -> None:
    assert modules_after(line) & absent == set()


@pytest.mark.parametrize("side", ["evaluation", "training", "export", "serving"])
def test_what_a_side_exports_is_there_under_its_name(side: str) -> None:
    package = import_module(f"glora_deploy.{side}")
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match=f"'glora_deploy.{side}' has no attribute 'misspelt'"):
        package.misspelt  # noqa: B018
