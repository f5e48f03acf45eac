"""What a Python file imports, by absolute name, read from its source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

LOADERS = {"__import__", "import_module", "resolve_name", "run_module"}
"""Functions that import the module whose name they are given."""
OUTSIDE = ".."
"""The name of what a relative import finds above the topmost package."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One name that a module imports."""

    name: str
    """Absolute; ``from a import b`` gives ``a`` and ``a.b``, since b may be a module. Empty where
    a loader is given no literal."""
    line: int
    relative: bool = False
    lazy: bool = False
    """Only when a function is called."""
    typing_only: bool = False
    """Only for a type checker."""


def imported_names(source: str, package: str) -> list[Imported]:
    """Every import of a file, anywhere in it.

    Args:
        source: Text of the file.
        package: Package that its relative imports start from: for an ``__init__`` its own name.

    Returns:
        In the order of the file.
    """
    return list(_walk(ast.parse(source), package, lazy=False, typing_only=False))


def _walk(node: ast.AST, package: str, *, lazy: bool, typing_only: bool) -> Iterator[Imported]:
    for name, relative in _names(node, package):
        line = getattr(node, "lineno", 0)
        yield Imported(name, line, relative=relative, lazy=lazy, typing_only=typing_only)
    lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    unseen = _never_run(node)
    for child in ast.iter_child_nodes(node):
        hidden = typing_only or child in unseen
        yield from _walk(child, package, lazy=lazy, typing_only=hidden)


def _names(node: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    """Absolute names that one statement or call imports, and whether it names them relatively."""
    match node:
        case ast.Import():
            yield from ((alias.name, False) for alias in node.names)
        case ast.ImportFrom():
            base = absolute("." * node.level + (node.module or ""), package)
            for name in (base, *(f"{base}.{alias.name}" for alias in node.names)):
                yield name, node.level > 0
        case ast.Call(func=ast.Name(id=loader) | ast.Attribute(attr=loader)) if loader in LOADERS:
            given = [*node.args, *(word.value for word in node.keywords)]
            literals = [_text(value) for value in given]
            name, anchor = [*literals, "", ""][:2]
            relative = name.startswith(".")
            # An anchor that is no literal is __package__ or __name__: this package.
            found = absolute(name.partition(":")[0], anchor or package)
            yield found, relative and not anchor


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def absolute(name: str, package: str) -> str:
    """Resolve ``..config`` as a file of this package does; ``OUTSIDE`` where there is none.

    >>> absolute("..config", "glora_deploy.export.hub")
    'glora_deploy.export.config'
    """
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if not level:
        return name
    parts = package.split(".")
    if level > len(parts):
        return OUTSIDE
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [bare])])


def _never_run(node: ast.AST) -> list[ast.stmt]:
    """Statements below an ``if TYPE_CHECKING`` that only a type checker sees."""
    match node:
        case ast.If(test=ast.UnaryOp(op=ast.Not(), operand=test)) if _is_type_checking(test):
            return node.orelse
        case ast.If(test=test) if _is_type_checking(test):
            return node.body
    return []


def _is_type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False
