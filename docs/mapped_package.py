"""A hook of the site: the packages lie in the repository as they do once they are installed.

``training``, ``export`` and ``serving`` are parts of ``glora_deploy`` by a mapping in
``pyproject.toml``; what reads the sources to document them looks for folders.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.plugins import event_priority

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

_CORE = "glora_deploy"


@event_priority(100)  # before mkdocstrings looks at its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let the Python handler of mkdocstrings read the mapped packages."""
    root = Path(config.config_file_path).parent
    tree = tempfile.TemporaryDirectory(prefix="glora-docs-")
    _copy(root, Path(tree.name) / _CORE)
    plugin: Any = config.plugins["mkdocstrings"]
    plugin.config.handlers["python"]["paths"] = [tree.name]
    atexit.register(tree.cleanup)
    return config


def _copy(root: Path, package: Path) -> None:
    """Copy the sources of every package to where it is installed."""
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    mapped: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    for name, folder in {_CORE: _CORE, **mapped}.items():
        place = package.joinpath(*name.split(".")[1:])
        shutil.copytree(root / folder, place, ignore=_not_sources, dirs_exist_ok=True)


def _not_sources(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (name.endswith(".py") or (Path(folder) / name).is_dir())]
