"""Who may import whom: the core no side, a side only the core; and what must stay free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIDES = ("training", "export", "serving")
FOLDERS = {"glora_deploy": ROOT / "glora_deploy", **{side: ROOT / side for side in SIDES}}

TORCH_FREE = (
    "artifact",
    "errors",
    "fingerprint",
    "fused_merge",
    "fused_tiles",
    "manifest",
    "merged_file",
    "pack",
    "parity",
    "paths",
    "preprocess",
    "prune",
    "store",
    "tensor_file",
    "unpack",
)
"""What a serving image without torch needs."""

OPTIONAL = {
    "onnxruntime": "export/runtime.py",
    "sklearn": "glora_deploy/demo_data.py",
    "timm": "glora_deploy/backbone.py",
    "triton": "glora_deploy/fused_triton.py",
}
"""Packages that one module alone may import; annotations do not count."""


class _RunTimeOnly(ast.NodeTransformer):
    """Drops what stands under ``if TYPE_CHECKING``."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if typing_only else self.generic_visit(node)


def imported(source: str, *, run_time_only: bool = False) -> set[str]:
    """Absolute names that a module imports, anywhere in it."""
    tree: ast.AST = ast.parse(source)
    if run_time_only:
        tree = _RunTimeOnly().visit(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            found.add("..")  # out of the folder by a relative import
    return found


def violations(folder: str, source: str) -> set[str]:
    """Imports that a module of this folder must not make."""
    others = {side for side in SIDES if side != folder}
    forbidden = {f"glora_deploy.{side}" for side in others} | others
    return {
        name
        for name in imported(source)
        if name == ".." or any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_core_imports_no_side_and_a_side_only_the_core(folder: str) -> None:
    found = {
        path.name: bad
        for path in FOLDERS[folder].rglob("*.py")
        if (bad := violations(folder, path.read_text("utf-8")))
    }
    assert found == {}


def test_a_planted_import_of_another_side_is_caught() -> None:
    planted = "def f():\n    from glora_deploy.export.cli import main\n"
    assert violations("training", planted)
    assert violations("glora_deploy", planted)
    assert not violations("export", planted)


@pytest.mark.parametrize(("package", "home"), OPTIONAL.items())
def test_an_optional_package_is_imported_in_one_module_only(package: str, home: str) -> None:
    importers = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS.values()
        for path in folder.rglob("*.py")
        if any(
            name == package or name.startswith(f"{package}.")
            for name in imported(path.read_text("utf-8"), run_time_only=True)
        )
    }
    assert importers <= {home}


def test_tensorrt_is_loaded_by_name_in_one_module_only() -> None:
    loaders = {
        path.name
        for path in (ROOT / "export").glob("*.py")
        if "import_module(" in path.read_text("utf-8")
    }
    assert loaders == {"tensorrt_library.py"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_core_of_a_server_needs_no_torch(module: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"import glora_deploy.{module}\n"
        "assert sys.modules['torch'] is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
