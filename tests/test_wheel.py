"""The wheel, as somebody installs it: whole, and importable where no repository is near."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "glora_deploy": "glora_deploy",
    "export": "glora_deploy/export",
    "serving": "glora_deploy/serving",
    "training": "glora_deploy/training",
}
"""Every folder of the project's code to where it lies in the wheel."""

MAY_BE_ABSENT = {"onnxruntime", "sklearn", "tensorrt", "tensorrt_rtx", "triton"}
"""What a module may need that ``pip install glora-deploy`` does not bring everywhere."""

# Without `site`, no .pth file is read: an editable install of the repository is not found.
IMPORT_ALL = """
import importlib, sys
from importlib.metadata import distribution
from pathlib import Path

wheel, modules, may_be_absent = Path(sys.argv[1]), sys.argv[2].split(), set(sys.argv[3].split())
sys.path[:0] = [sys.argv[1]]
sys.path += sys.argv[4:]
for name in modules:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in may_be_absent:
            raise
        print("absent", name, error.name)
    else:
        assert Path(module.__file__).is_relative_to(wheel), f"{name} is {module.__file__}"
scripts = distribution("glora-deploy").entry_points.select(group="console_scripts")
print("scripts", *sorted(script.name for script in scripts if callable(script.load())))
"""


def files_of_the_repository() -> dict[str, Path]:
    """Every file of the code by its place in the wheel."""
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools takes up what an earlier build left beside the sources."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", out, copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_code_and_no_other(wheel: Path) -> None:
    expected = files_of_the_repository()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert held == expected.keys()
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name


@pytest.mark.slow
def test_every_module_of_the_wheel_can_be_imported_without_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:  # one of Python alone is installed by unpacking it
        archive.extractall(installed)
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of_the_repository()
        if name.endswith(".py") and not name.endswith("/__main__.py")
    }
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c", IMPORT_ALL),
            *(installed, " ".join(sorted(modules)), " ".join(MAY_BE_ABSENT), *packages),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "scripts glora glora-export glora-serve glora-train"
