"""The sdist holds the repository; the wheel that is built from it, all that is installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from tracked_files import ROOT, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NAME, VERSION = PROJECT["project"]["name"].replace("-", "_"), PROJECT["project"]["version"]
FOLDERS = {"glora_deploy": "glora_deploy"} | {
    folder: package.replace(".", "/")
    for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()
}
"""Each top folder of code, and the folder of site-packages where it is installed."""
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, source: Path, to: Path) -> Path:
    """Build an ``sdist`` or a ``wheel`` of a source tree, as pip does but in this environment."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", to],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the repository, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in tracked_files():
        copy = folder / "repository" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    with tarfile.open(build("sdist", folder / "repository", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{NAME}-{VERSION}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from the sdist as from a package index."""
    with zipfile.ZipFile(build("wheel", sdist, tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


def test_the_sdist_holds_every_file_of_the_repository(sdist: Path) -> None:
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert set(tracked_files()) - held == set()


def test_the_sdist_holds_nothing_else_but_what_setuptools_writes(sdist: Path) -> None:
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    written = {name for name in held if name.startswith(f"{NAME}.egg-info/")}
    assert held - written - set(tracked_files()) == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {
        f"{FOLDERS[folder]}/{rest}"
        for folder, _, rest in (name.partition("/") for name in tracked_files())
        if folder in FOLDERS
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == modules
    assert "glora_deploy/py.typed" in held
    assert any(name.startswith("glora_deploy/backbones/weights/") for name in held)


def test_the_wheel_states_licence_readme_version_and_extras(wheel: zipfile.ZipFile) -> None:
    folder = f"{NAME}-{VERSION}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata.get_payload() == (ROOT / "README.md").read_text("utf-8")
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(extras)


def test_the_wheel_brings_its_programs(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"{NAME}-{VERSION}.dist-info/entry_points.txt").decode()
    expected = [f"{name} = {at}" for name, at in PROJECT["project"]["scripts"].items()]
    assert text.split("\n") == ["[console_scripts]", *sorted(expected), ""]
    assert len(expected) == 4
