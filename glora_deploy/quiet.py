"""Silence below an error, for commands that were asked for it: that of libraries as well."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


class _Nowhere(io.TextIOBase):
    """Takes text and drops it. Never closed: a library may keep it as the stream of its logger."""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        return len(text)


@contextmanager
def only_errors(quiet: bool = True) -> Iterator[None]:
    """While it lasts nothing is said but exceptions and log records of errors, if ``quiet``.

    Libraries speak by Python's warnings, by loggers of their own, or print. What they say there is
    for those who develop with them, and would break a pipe's clean output. Not thread-safe.
    """
    if not quiet:
        yield
        return
    disabled = logging.root.manager.disable
    errors = logging.StreamHandler()  # to the stderr of this moment
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_Nowhere()))
        stack.enter_context(redirect_stderr(_Nowhere()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not logging.root.handlers:  # else logging's last resort would write to nowhere
            logging.root.addHandler(errors)
            stack.callback(logging.root.removeHandler, errors)
        logging.disable(max(disabled, logging.WARNING))
        stack.callback(logging.disable, disabled)
        yield
