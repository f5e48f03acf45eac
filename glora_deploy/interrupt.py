"""Ctrl-C from a program's first import on: one line and an exit status, and no traceback.

Imports nothing heavy: it must be there before what takes seconds to load.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it: 128 + SIGINT."""


def run_program(load: Callable[[], Callable[[], None]]) -> None:
    """Load a program and run it; an interrupt ends either in one line.

    Args:
        load: Imports the program and returns it. While it does, an interrupt ends the process at
            once.
    """
    with leaving_at_once():
        program = load()
    try:
        program()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let an interrupt in the block, of imports, end the process with its one line.

    An exception in the middle of an import may be swallowed or reworded on its way.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    # Any other handler: someone wants it ignored, or otherwise handled.
    if main and before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        yield


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
