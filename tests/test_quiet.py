from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from typing import TextIO

import pytest

from glora_deploy.quiet import only_errors

SPEAKING = """
import logging, sys, warnings
from glora_deploy.quiet import only_errors

def speak(when):
    print(f"{when}: print")
    print(f"{when}: print to stderr", file=sys.stderr)
    warnings.warn(f"{when}: warning")
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("some.library"), level)(f"{when}: record of %s", level)

with only_errors(sys.argv[1] == "quiet"):
    speak("inside")
speak("after")
"""


def heard(quiet: bool) -> tuple[str, str]:
    """What a program of its own, whose logging nothing has set up, writes to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", SPEAKING, "quiet" if quiet else "loud"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_warnings_records_and_prints_of_libraries_are_not_heard_but_errors_are() -> None:
    stdout, stderr = heard(quiet=True)
    assert stdout == "after: print\n"
    assert [line for line in stderr.splitlines() if "inside" in line] == ["inside: record of error"]
    for text in ("print to stderr", "warning", "record of warning", "record of error"):
        assert f"after: {text}" in stderr


def test_a_command_that_is_not_quiet_says_everything() -> None:
    stdout, stderr = heard(quiet=False)
    assert stdout == "inside: print\nafter: print\n"
    for text in ("print to stderr", "warning", "record of warning", "record of error"):
        assert f"inside: {text}" in stderr


def test_an_exception_passes_and_everything_is_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    filters, streams = list(warnings.filters), (sys.stdout, sys.stderr)
    kept: list[TextIO] = []

    def fail() -> None:
        with only_errors():
            kept.append(sys.stderr)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)
    assert (warnings.filters, (sys.stdout, sys.stderr)) == (filters, streams)
    assert kept[0].write("by a library that kept the stream") > 0
    assert capsys.readouterr() == ("", "")
