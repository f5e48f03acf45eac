"""No test decides by the clock: on a busy machine it would fail though the code is right.

The one limit in pyproject.toml ends what hangs, and the child process that a test waits for.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(
    path.relative_to(TESTS).as_posix()
    for path in TESTS.rglob("*.py")
    if path.name != "stress_driver.py"  # by hand it runs as long as it is told to
)
CLOCKS = {"perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time"}


def limits(source: str) -> list[int]:
    """Lines that read a clock or give something a time limit of its own."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in CLOCKS)
        or (isinstance(node, ast.ImportFrom) and CLOCKS & {alias.name for alias in node.names})
        or (isinstance(node, ast.Attribute) and node.attr == "timeout")  # pytest.mark.timeout
        or (isinstance(node, ast.Call) and "timeout" in {word.arg for word in node.keywords})
    ]


@pytest.mark.parametrize("file", FILES)
def test_no_test_has_a_time_limit_of_its_own(file: str) -> None:
    assert limits((TESTS / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "subprocess.run(command, timeout=60)",
        "thread.join(timeout=LIMIT_S)",
        "assert time.perf_counter() - started < 5",
        "from time import monotonic",
        "@pytest.mark.timeout(60)\ndef f(): ...",
    ],
)
def test_a_planted_limit_is_seen(planted: str) -> None:
    assert limits(planted)
