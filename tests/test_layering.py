"""Who may import whom: the core no side, a side only the core; and what must stay free of torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from imported_names import OUTSIDE, Imported, imported_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
CORE = "glora_deploy"
SIDES = {package.removeprefix(f"{CORE}.") for package in FOLDERS if package.count(".") == 1}
FRONT_DOOR = f"{CORE}.commands"
"""The one package of the core that may import the sides, though not before a command is called."""

TORCH_FREE = (
    "data.preprocess",
    "errors",
    "evaluation.compare_versions",
    "evaluation.evaluate_version",
    "glora.forms",
    "merge.cpu",
    "merge.cpu_kernel",
    "merge.to_file",
    "origins.cache",
    "origins.publish",
    "packs.pack",
    "packs.unpack",
    "parity",
    "store.artifact",
    "store.fingerprint",
    "store.manifest",
    "store.mapped_safetensors",
    "store.prune",
    "store.store",
)
"""What a serving image without torch needs."""

OPTIONAL: dict[str, set[str]] = {
    "jinja2": {"glora_deploy/report/page.py"},
    "matplotlib": {"glora_deploy/report/canvas.py"},
    "obstore": {"glora_deploy/origins/s3_bucket.py"},
    "onnxruntime": {"export/onnx_model/ort_session.py", "glora_deploy/onnx_runtime.py"},
    "sklearn": {"glora_deploy/data/built_in_tasks.py", "glora_deploy/report/embedding.py"},
    "timm": {"glora_deploy/backbones/load.py"},
    "torch.utils.tensorboard": {"training/event_files.py"},
    "transformers": set(),  # of the example on language and of tests alone
    "triton": {"glora_deploy/merge/cuda_kernel.py"},
}
"""Packages that one module alone may import, or one of each wing, where these have nothing to do
with each other; annotations do not count."""


def folder_of(package: str) -> Path:
    """Where a package lies: its own entry in package-dir or that of the nearest package above."""
    if package in FOLDERS:
        return ROOT / FOLDERS[package]
    above, _, name = package.rpartition(".")
    return (folder_of(above) if above else ROOT) / name


def files() -> Iterator[tuple[str, Path]]:
    """Every file of the project's packages, with the name it is imported by."""
    for package in PACKAGES:
        for path in sorted(folder_of(package).glob("*.py")):
            yield package if path.stem == "__init__" else f"{package}.{path.stem}", path


def imports_of(module: str, path: Path) -> list[Imported]:
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    return imported_names(path.read_text("utf-8"), package)


def side_of(module: str) -> str | None:
    """The side that a module is part of, or None."""
    top, _, rest = module.partition(".")
    side = rest.partition(".")[0]
    return side if top == CORE and side in SIDES else None


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def must_not(module: str, found: Imported) -> bool:
    """Whether this module must not import this."""
    if found.name == OUTSIDE or found.name.partition(".")[0] in SIDES:
        return True  # as `training` a side is found in the repository's root only
    home, side = side_of(module), side_of(found.name)
    if is_below(found.name, FRONT_DOOR) and not is_below(module, FRONT_DOOR):
        return module != f"{CORE}.__main__"
    if home is None:
        late = found.lazy or found.typing_only
        return side is not None and not (is_below(module, FRONT_DOOR) and late)
    if found.relative:
        return side != home  # the core by its absolute name: a side's folder may lie elsewhere
    return side not in (None, home)


def violations(module: str, source: str, *, is_package: bool = False) -> set[str]:
    """Names that the source of a module imports although it must not."""
    package = module if is_package else module.rpartition(".")[0]
    return {found.name for found in imported_names(source, package) if must_not(module, found)}


def test_the_core_imports_no_side_and_a_side_only_the_core() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{name.line} imports {name.name}"
        for module, path in files()
        for name in imports_of(module, path)
        if must_not(module, name)
    ]
    assert found == []


def wing_of(module: str) -> str:
    """The wing that a module lies in, or the module itself if it lies in none.

    A wing is a package below the core or below a side.
    """
    parts = module.split(".")
    depth = 3 if side_of(module) else 2
    return ".".join(parts[:depth])


def wings() -> dict[str, set[str]]:
    """What each wing imports of the others, and of the modules beside them."""
    modules = {module for module, _ in files()}
    found: dict[str, set[str]] = {}
    for module, path in files():
        for imported in imports_of(module, path):
            name = imported.name
            while name not in modules and name:
                name = name.rpartition(".")[0]
            if name and not imported.typing_only and wing_of(name) != wing_of(module):
                found.setdefault(wing_of(module), set()).add(wing_of(name))
    return found


def test_no_two_wings_need_each_other() -> None:
    graph = {wing: needs - {CORE} for wing, needs in wings().items()}
    assert len(graph) > 30
    TopologicalSorter(graph).prepare()  # raises if there is a circle


def test_a_wing_that_makes_one_format_knows_nothing_of_the_others() -> None:
    makers = {
        f"{CORE}.export.{name}"
        for name in ("hub", "importers", "int8", "onnx_model", "tensorrt_plan", "triton_repository")
    }
    allowed = {
        (f"{CORE}.export.hub", f"{CORE}.export.onnx_model"),  # what a pushed graph reads
        (f"{CORE}.export.importers", f"{CORE}.export.hub"),  # adapters that lie on the Hub
        (f"{CORE}.export.int8", f"{CORE}.export.onnx_model"),  # is made from it
    }
    found = {(wing, need) for wing in makers for need in wings().get(wing, set()) & makers}
    assert found <= allowed


def test_every_file_belongs_to_a_package_that_is_installed() -> None:
    known = {path for _, path in files()}
    there = {path for package in PACKAGES for path in folder_of(package).rglob("*.py")}
    assert there == known
    assert {folder_of(package) / "__init__.py" for package in PACKAGES} <= known
    assert {"training", "export", "serving"} == SIDES


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("fingerprint", "from .training.config import RunConfig"),
        ("fingerprint", "from . import training"),
        ("fingerprint", "from .training import *"),
        ("fingerprint", "import glora_deploy.training"),
        ("fingerprint", "import numpy, glora_deploy.training.config as config"),
        ("fingerprint", "from glora_deploy import errors, serving"),
        ("fingerprint", "import training"),
        ("fingerprint", "from export.cli import main"),
        ("fingerprint", "from .. import glora_deploy"),
        ("fingerprint", "def f():\n    from glora_deploy.export.cli.commands import main"),
        ("fingerprint", "class A:\n    try:\n        from .export import cli\n    finally: ..."),
        ("fingerprint", "if TYPE_CHECKING:\n    from .export.cli import main"),
        ("fingerprint", "import_module('glora_deploy.training')"),
        ("fingerprint", "importlib.import_module('.training.cli', 'glora_deploy')"),
        ("fingerprint", "importlib.import_module('.training.cli', package=__package__)"),
        ("fingerprint", "importlib.import_module(name='glora_deploy.training')"),
        ("fingerprint", "lambda: __import__('glora_deploy.training')"),
        ("fingerprint", "runpy.run_module('glora_deploy.export', run_name='__main__')"),
        ("fingerprint", "pkgutil.resolve_name('glora_deploy.export.cli.commands:main')"),
        ("fingerprint", "def f():\n    from .commands.main import main"),
        ("store.audit", "from ..training.config import RunConfig"),
        ("store.audit", "from ... import glora_deploy"),
        ("commands.use", "from glora_deploy.export import cli"),
        ("program", "from .commands.table import COMMANDS"),
        ("training.config", "from glora_deploy.export.cli.commands import main"),
        ("training.config", "from glora_deploy import commands"),
        ("training.config", "from ..export import cli"),
        ("training.config", "from ..paths import Path"),
        ("training.config", "from training.search import evolve"),
        ("training.demo.images", "from ...export import cli"),
        ("training.demo.images", "from ... import paths"),
        ("training.demo.images", "import_module('...export', __package__)"),
        ("export.hub.client", "from glora_deploy.serving import app"),
    ],
)
def test_a_planted_import_of_another_side_is_caught(module: str, planted: str) -> None:
    assert violations(f"{CORE}.{module}", planted)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("fingerprint", "from .errors import training"),
        ("fingerprint", "from . import errors, training_notes"),
        ("fingerprint", "import glora_deploy.training_notes, exporter"),
        ("fingerprint", "import_module(name); find_spec('training')"),
        ("store.audit", "from ..errors import StoreError\nfrom . import read"),
        (
            "commands.use",
            "def f():\n    from glora_deploy.export.cli import x\n    from ..training import cli",
        ),
        ("__main__", "from .commands.main import main"),
        ("training.config", "from .search import evolve\nfrom . import search"),
        (
            "training.config",
            "from glora_deploy.glora.forms import Path\nimport glora_deploy.training.cli",
        ),
        ("training.demo.images", "from ..config import RunConfig\nfrom .. import search"),
        (
            "export.hub.client",
            "from glora_deploy.store.store.read import x\nfrom ..cli import main",
        ),
    ],
)
def test_an_import_that_the_rule_allows_passes(module: str, allowed: str) -> None:
    assert violations(f"{CORE}.{module}", allowed) == set()


def test_relative_imports_of_a_package_start_from_itself() -> None:
    assert violations(f"{CORE}", "from .training import cli", is_package=True)
    assert violations(f"{CORE}.store", "from ..training import cli", is_package=True)
    assert not violations(f"{CORE}.store", "from .training import cli", is_package=True)
    assert not violations(f"{CORE}.training", "from .config import RunConfig", is_package=True)
    assert violations(f"{CORE}.training", "from ..export import cli", is_package=True)


def test_a_nested_package_lies_below_the_nearest_folder_that_is_named() -> None:
    assert folder_of("glora_deploy.store") == ROOT / "glora_deploy" / "store"
    assert folder_of("glora_deploy.export.hub") == ROOT / "export" / "hub"


@pytest.mark.parametrize(
    ("source", "run"),
    [
        ("if TYPE_CHECKING:\n    import timm", False),
        ("if typing.TYPE_CHECKING:\n    import timm\nelse:\n    import numpy", False),
        ("if TYPE_CHECKING:\n    import numpy\nelse:\n    import timm", True),
        ("if not TYPE_CHECKING:\n    import timm", True),
        ("if not TYPE_CHECKING:\n    import numpy\nelse:\n    import timm", False),
        ("if TYPE_CHECKING:\n    def f():\n        import timm", False),
        ("if DEBUG:\n    import timm", True),
        ("def f():\n    import timm", True),
    ],
)
def test_what_only_a_type_checker_sees_is_told_apart(source: str, run: bool) -> None:
    (found,) = [name for name in imported_names(source, CORE) if name.name == "timm"]
    assert found.typing_only is not run


@pytest.mark.parametrize(("package", "homes"), OPTIONAL.items())
def test_an_optional_package_is_imported_in_one_module_of_a_wing(
    package: str, homes: set[str]
) -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for module, path in files()
        for found in imports_of(module, path)
        if is_below(found.name, package) and not found.typing_only
    }
    assert importers == homes
    assert len({home.rpartition("/")[0] for home in homes}) == len(homes)


def test_only_tensorrt_commands_of_a_table_and_methods_are_loaded_by_name() -> None:
    loaders = {
        f"{path.parent.name}/{path.name}"
        for module, path in files()
        for found in imports_of(module, path)
        if not found.name
    }
    assert loaders == {
        "tensorrt_runtime/library.py",
        "glora_deploy/program.py",
        "methods/__init__.py",
    }


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_core_of_a_server_needs_no_torch(module: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"import glora_deploy.{module}\n"
        "assert sys.modules['torch'] is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
